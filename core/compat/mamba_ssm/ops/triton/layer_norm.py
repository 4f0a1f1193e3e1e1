"""Layer and RMS norms with the residual sum before them, as mamba-ssm fuses them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, check_shape, present
from longseq.core.ops.precision import compute_dtype

__all__ = [
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]
__getattr__ = module_getattr(__name__)


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    """Returns the norm of x over its last dimension in x's dtype."""
    wide = weight.to(x.dtype)
    shift = None if bias is None else bias.to(x.dtype)
    if not rms:
        return F.layer_norm(x, x.shape[-1:], wide, shift, eps)
    y = F.rms_norm(x, x.shape[-1:], wide, eps)
    return y if shift is None else y + shift


def _dropped(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Returns x with elements dropped, and the bool mask of those that were kept."""
    kept = torch.rand(x.shape, device=x.device) >= p
    return torch.where(kept, x / (1 - p), torch.zeros_like(x)), kept


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor | None, ...]:
    """Returns norm(residual + dropout(rowscale · x) + dropout(x1)), summed in float32 at least.

    Args:
        x: (..., D).
        weight: (D,).
        bias: (D,).
        residual: added to x, (..., D).
        x1: a second branch that is added, (..., D); not together with ``rowscale``.
        weight1: of a second norm of the same sum (D,).
        bias1: of the second norm.
        eps: added to the variance.
        dropout_p: probability that an element of x, and of x1, is dropped.
        rowscale: factor of every row (...,).
        prenorm: whether the sum is returned too, in the residual's dtype.
        residual_in_fp32: whether it is float32 where there was no residual.
        is_rms_norm: RMS norm instead of layer norm.
        return_dropout_mask: whether the masks of what was kept are returned last.

    Returns:
        The norm in x's dtype; then, as asked for: the second norm, the sum, the masks of x and x1
        (None where nothing was dropped).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    check_kind("layer_norm_fn", True, x=x, weight=weight, **present(residual=residual, x1=x1))
    width = (x.shape[-1] if x.dim() else 1,)
    vectors = present(weight=weight, bias=bias, weight1=weight1, bias1=bias1)
    for key, vector in vectors.items():
        check_shape("layer_norm_fn", key, vector, width, "(width of x,)")
    for key, given in (("residual", residual), ("x1", x1)):
        if given is not None and given.shape != x.shape:
            raise ArgumentError(
                f"layer_norm_fn: {key} must have x's shape {tuple(x.shape)}, got "
                f"{tuple(given.shape)}"
            )
    if x1 is not None and rowscale is not None:
        raise ArgumentError("layer_norm_fn: rowscale does not go together with x1")
    dtype = compute_dtype(*(t for t in (x, residual, weight) if t is not None))
    total = x.to(dtype)
    if rowscale is not None:
        total = total * rowscale.to(dtype).unsqueeze(-1)
    mask = mask1 = None
    if dropout_p > 0:
        total, mask = _dropped(total, dropout_p)
    if x1 is not None:
        second = x1.to(dtype)
        if dropout_p > 0:
            second, mask1 = _dropped(second, dropout_p)
        total = total + second
    if residual is not None:
        total = total + residual.to(dtype)
    results: list[Tensor | None] = [_norm(total, weight, bias, eps, is_rms_norm).to(x.dtype)]
    if weight1 is not None:
        results.append(_norm(total, weight1, bias1, eps, is_rms_norm).to(x.dtype))
    if prenorm:
        kept = residual.dtype if residual is not None else None
        results.append(total.to(kept or (torch.float32 if residual_in_fp32 else x.dtype)))
    if return_dropout_mask:
        results += [mask, mask1]
    first = results[0]
    assert first is not None
    return first if len(results) == 1 else tuple(results)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor | None, ...]:
    """``layer_norm_fn`` with the RMS norm; arguments as there."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor | None]:
    """Returns W norm(residual + x) + b, and the sum with ``prenorm``; see ``layer_norm_fn``."""
    normed = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    if isinstance(normed, Tensor):
        return F.linear(normed, linear_weight, linear_bias)
    y, total = normed
    assert y is not None
    return F.linear(y, linear_weight, linear_bias), total


def _written_out(
    rms: bool,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    dtype = x.dtype

    def wide(t: Tensor) -> Tensor:
        return t.float() if upcast else t

    def kept(t: Tensor, mask: Tensor | None) -> Tensor:
        if dropout_p == 0:
            return t
        return F.dropout(t, dropout_p) if mask is None else t * mask / (1 - dropout_p)

    total = wide(x) if rowscale is None else wide(x) * rowscale.unsqueeze(-1)
    total = kept(total, dropout_mask)
    if x1 is not None:
        total = total + kept(wide(x1), dropout_mask1)
    if residual is not None:
        total = (total + wide(residual)).to(total.dtype)
    results = []
    for w, b in ((weight, bias), (weight1, bias1)):
        if w is None:
            continue
        centred = total if rms else total - total.mean(-1, keepdim=True)
        y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * wide(w)
        results.append((y if b is None else y + wide(b)).to(dtype))
    results += [total] if prenorm else []
    return results[0] if len(results) == 1 else tuple(results)


def layer_norm_ref(*args: object, **named: object) -> Tensor | tuple[Tensor, ...]:
    """The layer norm written out: x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p,
    rowscale, prenorm, dropout_mask, dropout_mask1, upcast."""
    return _written_out(False, *args, **named)  # type: ignore[arg-type]


def rms_norm_ref(*args: object, **named: object) -> Tensor | tuple[Tensor, ...]:
    """The RMS norm written out; arguments as ``layer_norm_ref``."""
    return _written_out(True, *args, **named)  # type: ignore[arg-type]


class RMSNorm(nn.Module):
    """RMS norm over the last dimension, with the residual sum before it.

    Args:
        hidden_size: D.
        eps: added to the mean square.
        dropout_p: probability that an element of the input is dropped in training.
        device: of the weight.
        dtype: of the weight.
    """

    bias: None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to ones."""
        nn.init.ones_(self.weight)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor | None, ...]:
        """See ``rms_norm_fn``."""
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual,
            eps=self.eps,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )
