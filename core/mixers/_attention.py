"""What the attention mixers share: projections with grouped heads, rotary positions, places in a
pack, attention by blocks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers.base import Mixer
from longseq.core.ops.arguments import differentiated, readable
from longseq.core.ops.exported import is_open
from longseq.core.ops.linear_maps import mapped


class AttentionBase(Mixer):
    """Query, key, value and output projections, named as in the Llama layout.

    Args:
        d_model: width D.
        n_heads: number of query heads H.
        n_kv_heads: number of key and value heads, a divisor of ``n_heads``; None for as many as
            query heads.
        d_head: width of a head P; None for D / H.
        rope_base: base of the rotary frequencies; None for no position information beside the
            mask's.
        bias: whether the query, key and value projections have a bias.
        dropout: probability of dropping an attention weight in training.
        rope_fraction: part of a head's features that is turned, the first ones.
        out_bias: whether the output projection has a bias.
        scale: of the products of queries and keys; None for 1/√P.

    Raises:
        ConfigError: if the widths do not divide, or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None,
        d_head: int | None,
        rope_base: float | None,
        bias: bool,
        dropout: float,
        rope_fraction: float = 1.0,
        out_bias: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__(d_model)
        if d_head is None:
            d_head = check_divisible("d_model", d_model, "n_heads", n_heads)
        check_positive("d_head", d_head)
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        check_divisible("n_heads", n_heads, "n_kv_heads", n_kv_heads)
        self.d_rotary = int(d_head * rope_fraction)
        if rope_base is not None:
            if not 0 < rope_fraction <= 1:
                raise ConfigError(f"rope_fraction must lie in (0, 1], got {rope_fraction!r}")
            if self.d_rotary % 2 or not self.d_rotary:
                name = "d_head" if rope_fraction == 1 else "rope_fraction · d_head"
                raise ConfigError(f"{name} must be even for rotary positions, got {self.d_rotary}")
            if rope_base <= 1:
                raise ConfigError(f"rope_base must be above 1, got {rope_base!r}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.rope_base, self.dropout, self.scale = rope_base, dropout, scale
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=out_bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries (B, L, H, P), keys and values (B, L, H_kv, P) of x (B, L, D)."""
        shape = (-1, self.d_head)
        return (
            mapped(self.q_proj, x).unflatten(-1, shape),
            mapped(self.k_proj, x).unflatten(-1, shape),
            mapped(self.v_proj, x).unflatten(-1, shape),
        )

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turns queries or keys (B, L, H, P) by their positions, (L,) or (B, L); see ``rotate``."""
        if self.rope_base is None or self.d_rotary == self.d_head:
            return rotate(x, positions, self.rope_base)
        turned, rest = x.split([self.d_rotary, self.d_head - self.d_rotary], -1)
        return torch.cat([rotate(turned, positions, self.rope_base), rest], -1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """Returns softmax(scale · q kᵀ) v.

        Args:
            q: (B, Q, H, P).
            k: (B, K, H_kv, P).
            v: (B, K, H_kv, P).
            mask: bool, true where a query sees a key, broadcastable to (B, H, Q, K).
            is_causal: whether query t sees keys up to t; Q = K then.

        Returns:
            (B, Q, H, P).
        """
        y = attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            scale=self.scale,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        return y.transpose(1, 2)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: Any
) -> Tensor:
    """Returns ``scaled_dot_product_attention`` of torch, by its plain equations where its kernels
    lack the derivative: in forward mode, and by a mask that a transform may differentiate.

    Second derivatives in reverse mode are known to be wanted only when it is too late: the caller
    asks for the plain equations, ``with torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    Args:
        q: queries (..., Q, P).
        k: keys (..., K, P).
        v: values (..., K, V).
        mask: bool, or what is added to the scores (..., Q, K).
        **options: torch's others.
    """
    plain = differentiated(mask is not None and mask.is_floating_point())
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, mask, **options)


def rotate(x: Tensor, positions: Tensor, base: float | None) -> Tensor:
    """Turns each pair of features by an angle proportional to the position (RoPE, arXiv 2104.09864,
    eq. 34).

    Feature p is paired with feature p + P/2 and the pair turns by position · base^(-2p/P), so that
    the product of a query and a key depends on their distance only.

    Args:
        x: queries or keys (B, L, H, P), P even.
        positions: integers (L,) or (B, L).
        base: of the geometric progression of frequencies; None leaves ``x`` as it is.

    Returns:
        (B, L, H, P) in the dtype of ``x``.
    """
    if base is None:
        return x
    # Angles in float64 where there is one: a float32 angle at position 10^6 is wrong in its second
    # decimal.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device, dtype=exact) / half)
    # (L, 1, P/2) or (B, L, 1, P/2)
    angles = (positions.to(exact)[..., None] * frequencies).unsqueeze(-2)
    working = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angles.cos().to(working), angles.sin().to(working)
    first, second = x.to(working).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def seen_from(memory: Tensor, position: int, base: float) -> Tensor:
    """Turns the keys of a matrix memory back by ``position``, which becomes the new origin.

    Args:
        memory: (B, H, K, V), sums of rotated keys times values.
        position: of the new origin.
        base: see ``rotate``.
    """
    columns = memory.permute(0, 3, 1, 2)  # (B, V, H, K)
    positions = torch.full((1,), -position, device=memory.device)  # one angle for all columns
    return rotate(columns, positions, base).permute(0, 2, 3, 1)


def positions_in_pack(resets: Tensor | None, seen: Tensor, length: int) -> Tensor:
    """Returns how many earlier positions of its own sequence each position has, (B, L).

    Args:
        resets: bool (B, L), true where a new sequence begins, or None.
        seen: integers (B,), positions of the current sequence seen before this chunk.
        length: L.
    """
    index = torch.arange(length, device=seen.device)
    continued = seen[:, None] + index
    if resets is None:
        return continued
    begun = torch.where(resets, index, -1).cummax(1).values
    return torch.where(begun >= 0, index - begun, continued)


def chunk_attention(
    q: Tensor, k: Tensor, v: Tensor, reach: Tensor, relative: Tensor | None = None
) -> Tensor:
    """Returns softmax(q kᵀ / √z + b) v over the last positions, by blocks of queries, so that the
    cost grows with L.

    Args:
        q: queries (B, L, z).
        k: keys, W - 1 of the past first (B, W - 1 + L, z).
        v: likewise (B, W - 1 + L, V).
        reach: how many earlier positions a query sees, at most W - 1 (B, L).
        relative: b by distance (W,); None for none.

    Returns:
        (B, L, V).
    """
    batch, length = q.shape[:2]
    before = k.shape[1] - length
    # One block of all queries where their number is not known.
    block = length if is_open(length) else min(before + 1, length)
    spare = 0 if is_open(length) else -length % block
    width = block + before
    if is_open(length):
        q, k, v, reach = (t.unsqueeze(1) for t in (q, k, v, reach))
    else:
        q = F.pad(q, (0, 0, 0, spare)).unflatten(1, (-1, block))
        k = F.pad(k, (0, 0, 0, spare)).unfold(1, width, block).mT
        v = F.pad(v, (0, 0, 0, spare)).unfold(1, width, block).mT
        reach = F.pad(reach, (0, spare)).unflatten(1, (-1, block))
    place = torch.arange(width, device=q.device)
    distance = place[before:, None] - place
    hidden = (distance < 0) | (distance > reach.unsqueeze(-1))
    if relative is None:
        bias = q.new_zeros(()).expand(hidden.shape)
    else:
        bias = relative[distance.clamp(0, before)].to(q.dtype).expand(batch, q.shape[1], -1, -1)
    y = attention(q, k, v, bias.masked_fill(hidden, -torch.inf))
    return y.flatten(1, 2)[:, :length]


def chunk_starts(
    name: str, x: Tensor, positions: Tensor, chunk: int, from_start: bool
) -> list[int]:
    """Returns position 0 and those at which a chunk of any row begins.

    Args:
        name: of the mixer, for messages.
        x: its input (B, L, D).
        positions: earlier positions of each one's sequence or chunk (B, L).
        chunk: positions in a chunk.
        from_start: whether all rows begin at position 0, and no sequence behind it.

    Raises:
        ArgumentError: under a compiler or a transform, if values decide.
        ConfigError: if the length is left open for an export.
    """
    length = x.shape[1]
    if is_open(length):
        raise ConfigError(f"{name} goes from chunk to chunk: export it for one length")
    if from_start or x.device.type == "meta":
        return list(range(0, length, chunk))
    if not readable(x, positions):
        raise ArgumentError(
            f"{name} must look at where chunks begin, which a compiler or transform does not "
            "allow: give whole sequences there, without state and segment_ids"
        )
    begins: list[int] = (positions % chunk == 0).any(0).nonzero().flatten().tolist()
    return sorted({0, *begins})
