"""Norms of groups of channels with a swish gate, before or after them, as Mamba-2 has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, check_shape, present
from longseq.core.ops.gated_norm import gated_rms_norm
from longseq.core.ops.precision import compute_dtype

__all__ = ["LayerNorm", "RMSNorm", "layernorm_fn", "rms_norm_ref", "rmsnorm_fn"]
__getattr__ = module_getattr(__name__)


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Returns norm(x) · silu(z), or norm(x · silu(z)), computed in float32 at least.

    Args:
        x: (..., D).
        weight: (D,).
        bias: (D,).
        z: gate (..., D).
        eps: added to the variance.
        group_size: channels of a group, each normalised by itself; all D if None.
        norm_before_gate: which of the two.
        is_rms_norm: RMS norm instead of layer norm.

    Returns:
        (..., D) in x's dtype.

    Raises:
        ArgumentError: if the groups do not divide D, or z has another shape.
    """
    check_kind("layernorm_fn", True, x=x, weight=weight, **present(z=z))
    width = x.shape[-1] if x.dim() else 1
    for key, vector in present(weight=weight, bias=bias).items():
        check_shape("layernorm_fn", key, vector, (width,), "(width of x,)")
    group_size = width if group_size is None else group_size
    if group_size < 1 or width % group_size:
        raise ArgumentError(
            f"layernorm_fn: group_size {group_size} does not divide the width {width}"
        )
    if z is not None and z.shape != x.shape:
        raise ArgumentError(
            f"layernorm_fn: z must have x's shape {tuple(x.shape)}, got {tuple(z.shape)}"
        )
    if is_rms_norm and z is not None and bias is None:
        groups = width // group_size
        return gated_rms_norm(x, z, weight, groups, norm_before_gate, eps).to(x.dtype)
    dtype = compute_dtype(*(t for t in (x, weight, z) if t is not None))
    value = x.to(dtype)
    gate = None if z is None else F.silu(z.to(dtype))
    if gate is not None and not norm_before_gate:
        value = value * gate
    parts = value.unflatten(-1, (-1, group_size))
    if is_rms_norm:
        parts = F.rms_norm(parts, (group_size,), eps=eps)
    else:
        parts = F.layer_norm(parts, (group_size,), eps=eps)
    value = parts.flatten(-2) * weight.to(dtype)
    value = value if bias is None else value + bias.to(dtype)
    if gate is not None and norm_before_gate:
        value = value * gate
    return value.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """``layernorm_fn`` with the RMS norm; arguments as there."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """The RMS norm written out; arguments as ``rmsnorm_fn``.

    ``upcast`` says whether x and z are raised to float32 first.
    """
    value, gate = x, z
    if upcast:
        value, gate = x.float(), None if z is None else z.float()
    if gate is not None and not norm_before_gate:
        value = value * F.silu(gate)
    parts = value.unflatten(-1, (-1, group_size or x.shape[-1]))
    parts = parts / torch.sqrt(parts.square().mean(-1, keepdim=True) + eps)
    value = parts.flatten(-2) * weight.float()
    value = value if bias is None else value + bias.float()
    if gate is not None and norm_before_gate:
        value = value * F.silu(gate)
    return value.to(x.dtype)


class _GatedNorm(nn.Module):
    """Weights and options of either norm."""

    rms: bool
    bias: Tensor | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        shift = None if self.rms else nn.Parameter(torch.empty_like(self.weight))
        self.register_parameter("bias", shift)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to ones and the bias to zeros."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """See ``layernorm_fn``."""
        options = self.eps, self.group_size, self.norm_before_gate, self.rms
        return layernorm_fn(x, self.weight, self.bias, z, *options)


class LayerNorm(_GatedNorm):
    """Layer norm of groups of channels with a gate; see ``layernorm_fn``.

    Args:
        hidden_size: D.
        eps: added to the variance.
        group_size: channels of a group; all if None.
        norm_before_gate: whether the gate comes after the norm.
        device: of the weights.
        dtype: of the weights.
    """

    rms = False


class RMSNorm(_GatedNorm):
    """RMS norm of groups of channels with a gate; arguments as ``LayerNorm``."""

    rms = True
