"""The attention layer of mamba-ssm's hybrids: grouped heads, rotary positions, a gated MLP."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)
from longseq.core.compat.mamba_ssm.modules._cache import keep_last, states_of
from longseq.core.compat.mamba_ssm.modules._checks import check_input, check_sizes, explained
from longseq.core.errors import ArgumentError, ConfigError

__all__ = ["MHA"]
__getattr__ = module_getattr(__name__)


def rotate(x: Tensor, at: Tensor, size: int, base: float, interleaved: bool) -> Tensor:
    """Returns x (B, L, H, P) with its first ``size`` channels turned by their positions.

    Args:
        x: queries or keys.
        at: positions (B or 1, L).
        size: channels that are turned, even.
        base: of the frequencies.
        interleaved: whether pairs are neighbours, or lie half of ``size`` apart.
    """
    rates = base ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angle = (at.unsqueeze(-1).float() * rates).unsqueeze(2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    turned, kept = x[..., :size], x[..., size:]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        pairs = torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([pairs, kept], -1)


class MHA(nn.Module):
    """Multi-head attention.

    Args:
        embed_dim: width D.
        num_heads: heads of queries.
        num_heads_kv: heads of keys and values; as many if None.
        head_dim: width of a head P; D / heads if None.
        mlp_dim: width of a gated MLP beside the attention, rounded up to a multiple of 256; 0 for
            none.
        qkv_proj_bias: whether the input projection has a bias.
        out_proj_bias: whether the output projection has one.
        softmax_scale: of the scores; 1/√P if None.
        causal: whether a position sees only those before it.
        layer_idx: the layer's number, by which its cache is kept while generating.
        d_conv: taps of a convolution of queries, keys and values; 0 for none.
        rotary_emb_dim: channels of a head that are turned by their positions; 0 for none.
        rotary_emb_base: base of the frequencies.
        rotary_emb_interleaved: whether the turned pairs are neighbours.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: for sizes that do not divide or are below 1.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads, self.layer_idx = embed_dim, num_heads, layer_idx
        check_sizes("MHA", embed_dim=embed_dim, num_heads=num_heads)
        self.num_heads_kv = num_heads if num_heads_kv is None else num_heads_kv
        check_sizes("MHA", num_heads_kv=self.num_heads_kv)
        if num_heads % self.num_heads_kv:
            raise ConfigError(f"num_heads_kv ({num_heads_kv}) must divide num_heads ({num_heads})")
        if head_dim is None and embed_dim % num_heads:
            raise ConfigError(f"num_heads ({num_heads}) must divide embed_dim ({embed_dim})")
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        check_sizes("MHA", head_dim=self.head_dim)
        if rotary_emb_dim % 2 or rotary_emb_dim > self.head_dim:
            raise ConfigError(
                f"rotary_emb_dim must be even and at most {self.head_dim}, got {rotary_emb_dim}"
            )
        self.softmax_scale, self.causal, self.d_conv = softmax_scale, causal, d_conv
        self.rotary_emb_dim, self.rotary_emb_base = rotary_emb_dim, rotary_emb_base
        self.rotary_emb_interleaved = rotary_emb_interleaved
        self.mlp_dim = math.ceil(mlp_dim / 256) * 256
        self.qkv_dim = self.head_dim * (num_heads + 2 * self.num_heads_kv)
        self.in_proj = nn.Linear(embed_dim, self.qkv_dim + self.mlp_dim, qkv_proj_bias, **where)
        if d_conv:
            self.conv1d = nn.Conv1d(
                self.qkv_dim, self.qkv_dim, d_conv, padding=d_conv - 1, groups=self.qkv_dim, **where
            )
        inner = self.head_dim * num_heads + self.mlp_dim // 2
        self.out_proj = nn.Linear(inner, embed_dim, out_proj_bias, **where)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns room for keys and values (B, L, 2, heads, P), and the convolution's state."""
        weight = self.out_proj.weight
        dtype = dtype or weight.dtype
        shape = (batch_size, max_seqlen, 2, self.num_heads_kv, self.head_dim)
        conv = None
        if self.d_conv:
            conv = weight.new_zeros(batch_size, self.qkv_dim, self.d_conv, dtype=dtype)
        return weight.new_zeros(shape, dtype=dtype), conv

    def _convolve(self, qkv: Tensor, state: Tensor | None, first: bool) -> Tensor:
        taps = self.conv1d.weight.squeeze(1)
        if state is not None and not first:
            x = causal_conv1d_update(qkv.transpose(1, 2), state, taps, self.conv1d.bias)
            return x.transpose(1, 2)
        if state is not None:
            keep_last(state, qkv)
        convolved = causal_conv1d_fn(qkv.transpose(1, 2), taps, self.conv1d.bias)
        assert isinstance(convolved, Tensor)
        return convolved.transpose(1, 2)

    @explained("in_proj")
    def forward(self, x: Tensor, inference_params: Any = None) -> Tensor:
        """Mixes sequences (B, L, D), or the next positions of sequences.

        Args:
            x: (B, L, D).
            inference_params: None, or an ``InferenceParams`` that holds keys and values.

        Raises:
            ArgumentError: for an input that does not fit, or more positions than there is room for.
        """
        check_input("MHA", x, self.embed_dim)
        length, cache, conv, seen = x.shape[1], None, None, 0
        if inference_params is not None:
            cache, conv = states_of(self, inference_params, x.shape[0])
            seen = inference_params.seqlen_offset
        qkv, mlp = self.in_proj(x).split([self.qkv_dim, self.mlp_dim], dim=-1)
        if self.d_conv:
            qkv = self._convolve(qkv, conv, seen == 0)
        pairs = self.num_heads_kv * self.head_dim
        q, k, v = qkv.split([qkv.shape[-1] - 2 * pairs, pairs, pairs], dim=-1)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)) for t in (q, k, v))
        if self.rotary_emb_dim:
            at = torch.arange(seen, seen + length, device=x.device).unsqueeze(0)
            turn = self.rotary_emb_dim, self.rotary_emb_base, self.rotary_emb_interleaved
            q, k = rotate(q, at, *turn), rotate(k, at, *turn)
        if cache is not None:
            rows = slice(inference_params.batch_size_offset, None)
            if seen + length > cache.shape[1]:
                raise ArgumentError(
                    f"MHA: {seen} positions were seen and {length} come, and the cache holds "
                    f"{cache.shape[1]} (max_seqlen)"
                )
            held = cache[rows][: x.shape[0]]
            held[:, seen : seen + length] = torch.stack([k, v], 2)
            k, v = held[:, : seen + length].to(q.dtype).unbind(2)
        mask = None
        if self.causal and seen:  # the queries are the last positions of the keys
            places = torch.arange(seen + length, device=x.device)
            mask = places <= places[seen:, None]
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=self.causal and mask is None,
            scale=self.softmax_scale,
            enable_gqa=self.num_heads != self.num_heads_kv,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        if self.mlp_dim:
            value, gate = mlp.chunk(2, -1)
            mixed = torch.cat([mixed, value * F.silu(gate)], -1)
        out: Tensor = self.out_proj(mixed)
        return out
