"""The residual block of mamba-ssm: sum, norm, mixer; and sum, norm, MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.modules._checks import check_input, explained
from longseq.core.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn

__all__ = ["Block"]
__getattr__ = module_getattr(__name__)


class Block(nn.Module):
    """A layer that takes and returns what its mixer made and the residual sum apart.

    Args:
        dim: width D.
        mixer_cls: makes the mixer of D.
        mlp_cls: makes the MLP of D; ``nn.Identity`` for none, which is the default so that code for
            mamba-ssm 1, which had no MLP, goes on.
        norm_cls: makes a norm of D.
        fused_add_norm: whether sum and norm are one function.
        residual_in_fp32: whether the sum is float32.

    Raises:
        TypeError: if the norm is neither ``nn.LayerNorm`` nor ``RMSNorm`` and should be fused.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module] = nn.Identity,
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.residual_in_fp32, self.fused_add_norm = dim, residual_in_fp32, fused_add_norm
        self.norm = norm_cls(dim)
        self.mixer = mixer_cls(dim)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise TypeError(
                f"fused_add_norm takes nn.LayerNorm or RMSNorm, got {type(self.norm).__name__}"
            )

    def _add_and_norm(
        self, hidden: Tensor, residual: Tensor | None, norm: nn.Module
    ) -> tuple[Tensor, Tensor]:
        if self.fused_add_norm:
            return add_norm(hidden, residual, norm, self.residual_in_fp32)
        residual = hidden if residual is None else hidden + residual
        weight = norm.weight
        assert isinstance(weight, Tensor)
        normed = norm(residual.to(weight.dtype))
        return normed, residual.float() if self.residual_in_fp32 else residual

    @explained("norm")
    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Runs the layer.

        Args:
            hidden_states: what the layer before made (B, L, D).
            residual: the sum so far; None for the first layer.
            inference_params: caches while generating.
            **mixer_kwargs: handed to the mixer.

        Returns:
            What this layer made, and the sum.

        Raises:
            ArgumentError: for an input that does not fit.
        """
        check_input("Block", hidden_states, self.dim)
        hidden_states, residual = self._add_and_norm(hidden_states, residual, self.norm)
        hidden_states = self.mixer(hidden_states, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            hidden_states, residual = self._add_and_norm(hidden_states, residual, self.norm2)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """Returns the mixer's empty cache."""
        allocate: Any = self.mixer.allocate_inference_cache
        return allocate(batch_size, max_seqlen, dtype=dtype, **kwargs)


def add_norm(
    hidden: Tensor, residual: Tensor | None, norm: nn.Module, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """Returns the norm of the sum, and the sum, by one function."""
    settings: Any = norm
    normed = layer_norm_fn(
        hidden,
        settings.weight,
        settings.bias,
        residual,
        eps=settings.eps,
        prenorm=True,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=isinstance(norm, RMSNorm),
    )
    y, total = normed
    assert y is not None and total is not None
    return y, total
