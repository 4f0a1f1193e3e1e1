"""Host side of the delta rule's kernels: buffers, and what chunks are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from longseq.core.kernels.triton import (
    delta_channels,
    delta_chunks,
)
from longseq.core.kernels.triton._plan import Plan
from longseq.core.kernels.triton.common import choose_tile, launch, padded, strides

CHUNK = 64  # the inverse is written out for four blocks of 16
_LEAST_SHARED = 101376  # bytes of shared memory a program may use, of the GPUs since Ampere


def shared_memory(tensor: Tensor) -> tuple[int, int]:
    """Returns the bytes of shared memory a program may use where a tensor is: alone, and beside
    another."""
    if not tensor.is_cuda:
        return _LEAST_SHARED, _LEAST_SHARED
    # Attributes that older versions of torch do not have.
    about = torch.cuda.get_device_properties(tensor.device)
    most = int(getattr(about, "shared_memory_per_block_optin", _LEAST_SHARED))
    return most, max(
        _LEAST_SHARED, int(getattr(about, "shared_memory_per_multiprocessor", 0)) // 2 - 1024
    )


@dataclass(frozen=True)
class Call:
    """A call's arguments, dense where the kernels want it, and what its passes share.

    Attributes:
        q: queries.
        k: keys.
        v: values.
        beta: (B, L, H), float32.
        log_decay: (B, L, H), (B, L, G, K) or None, float32.
        scale: of the output.
        plan: sizes.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None
    scale: float
    plan: Plan

    @property
    def channel(self) -> bool:
        """Returns whether there is a decay per key channel."""
        return self.log_decay is not None and self.log_decay.ndim == 4

    @property
    def wide(self) -> int:
        """Returns 2 where operands are twice as large as bfloat16, else 1."""
        return 1 if self.plan.tile.dot == tl.bfloat16 else 2

    @property
    def fused(self) -> bool:
        """Returns whether a walk has room for whole chunks of queries beside keys and W: for
        outputs."""
        return self.rows(3) == CHUNK and self.room(3, 2) <= shared_memory(self.v)[0]

    def rows(self, tiles: int) -> int:
        """Returns how many rows of a chunk a walk takes at a time: of so many tiles as wide as a
        key."""
        rows = CHUNK
        while rows > 16 and rows * padded(self.plan.key) * 2 * self.wide * tiles > 1 << 16:
            rows //= 2
        return rows

    def room(self, tiles: int, stages: int) -> int:
        """Returns about how many bytes of shared memory a walk takes that loads T × K tiles
        ahead."""
        scores = CHUNK * CHUNK if self.channel and tiles > 2 else 0
        return stages * 2 * self.wide * (tiles * CHUNK * padded(self.plan.key) + scores) + (1 << 14)

    @property
    def exact(self) -> str:
        """Returns how float32 blocks of what is rounded later are multiplied."""
        if self.wide == 1:
            return "tf32"  # the result is rounded to bfloat16
        return "ieee" if self.plan.tile.precision == "ieee" else "tf32x3"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Returns length, chunks and heads, as the kernels take them."""
        return self.plan.length, self.plan.chunks, self.plan.heads

    @property
    def programs(self) -> int:
        """Returns chunks times heads times rows."""
        return self.plan.batch * self.plan.heads * self.plan.chunks

    def new(self, *shape: int, heads: int | None = None, full: bool = False) -> Tensor:
        """Returns memory for something per chunk: in the dtype that is multiplied, or float32."""
        plan = self.plan
        dtype = torch.float32 if full or self.wide == 2 else torch.bfloat16
        lead = (plan.batch, plan.heads if heads is None else heads, plan.chunks)
        return self.v.new_empty((*lead, *shape), dtype=dtype)

    def state(self, segments: int = 1, value: int | None = None) -> Tensor:
        """Returns memory for a state per segment, (B, H, segments, K, V or ``value``), float32."""
        plan = self.plan
        shape = (plan.batch, plan.heads, segments, plan.key, plan.value if value is None else value)
        return self.v.new_empty(shape, dtype=torch.float32)

    def launch(self, kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
        """Runs a kernel that multiplies, with what all of them take by name."""
        tile = self.plan.tile
        launch(kernel, programs, *args, **{"DOT": tile.dot, "PRECISION": tile.precision, **meta})

    def widths(self, most: int = 64) -> dict[str, int]:
        """Returns block widths of keys and values and the widths themselves, as the kernels take
        them."""
        key, value = self.plan.key, self.plan.value
        blocks = {"BK": min(most, padded(key)), "BV": min(most, padded(value))}
        return {"K": key, "V": value, "T": CHUNK, "SHARE": self.plan.shared, **blocks}


def call_of(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, scale: float
) -> Call:
    """Returns the call of these arguments.

    Args:
        q: queries, the last dimension dense, as of k and v.
        k: keys.
        v: values.
        beta: dense, float32.
        log_decay: alike, or None.
        scale: of the output.
    """
    batch, length, heads, value = v.shape
    tile = choose_tile(length, CHUNK, q.shape[3], value, q, k, v)._replace(chunk=CHUNK)
    plan = Plan(tile, batch, length, q.shape[2], heads, q.shape[3], value)
    return Call(q, k, v, beta, log_decay, scale, plan)


@dataclass(frozen=True)
class Forms:
    """What is computed of every chunk by itself.

    Attributes:
        inverse: M (B, H, C, T, T).
        w: M diag(β) F (B, H, C, T, K).
        own: M diag(β) V (B, H, C, T, V).
        far_q: queries decayed from the chunk's start, or q.
        far_k: keys decayed to the chunk's end, or k.
        read: decayed products of queries and keys (B, G, C, T, T), with a decay per channel.
        met: decayed products of keys, alike.
        decays: with a decay per head its running sums in two parts, and the factors from the
            chunk's start and to its end, (B, H, C, T) each.
        totals: factors over the chunk (B, H, C), or log-decays (B, G, C, K).
    """

    inverse: Tensor
    w: Tensor
    own: Tensor
    far_q: Tensor
    far_k: Tensor
    read: Tensor | None
    met: Tensor | None
    decays: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
    totals: Tensor | None


def forms_of(call: Call, inverse: Tensor | None = None) -> Forms:
    """Computes what there is to compute of every chunk by itself.

    Args:
        call: the call.
        inverse: M where it is there.
    """
    plan, q, k, g = call.plan, call.q, call.k, call.log_decay
    read = met = totals = None
    decays: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (
        None,
        None,
        None,
        None,
    )
    far_q, near_k, far_k = q, k, k
    per_head = None if call.channel else g
    if call.channel:
        read = call.new(CHUNK, CHUNK, heads=plan.groups)
        met = call.new(CHUNK, CHUNK, heads=plan.groups, full=True)
        far_q, near_k, far_k = (
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, k)
        )
        totals = call.new(plan.key, heads=plan.groups, full=True)
        call.launch(
            delta_channels.channel_products,
            plan.batch * plan.groups * plan.chunks * (CHUNK // 16),
            q,
            k,
            g,
            read,
            met,
            far_q,
            near_k,
            far_k,
            totals,
            call.scale,
            plan.length,
            plan.chunks,
            plan.groups,
            *strides(q),
            *strides(k),
            K=plan.key,
            T=CHUNK,
            BK=padded(plan.key),
            num_warps=4 if plan.key <= 64 else 8,
            num_stages=1,
        )
    elif g is not None:
        coarse, fine, through, behind = (call.new(CHUNK, full=True) for _ in range(4))
        decays = (coarse, fine, through, behind)
        totals = call.new(full=True)
    if inverse is None:
        inverse = call.new(CHUNK, CHUNK)
        call.launch(
            delta_chunks.invert_chunks,
            call.programs,
            k,
            call.beta,
            per_head,
            met,
            inverse,
            *call.sizes,
            *strides(k),
            SHARE=plan.shared,
            K=plan.key,
            BK=min(32, padded(plan.key)),
            EXACT=call.exact,
            num_warps=2,
            num_stages=1,
        )
    w, own = call.new(CHUNK, plan.key), call.new(CHUNK, plan.value)
    call.launch(
        delta_chunks.write_forms,
        call.programs,
        near_k,
        call.v,
        call.beta,
        per_head,
        inverse,
        w,
        own,
        *decays,
        None if per_head is None else totals,
        *call.sizes,
        *strides(near_k),
        *strides(call.v),
        **call.widths(),
        num_warps=4 * call.wide,
        num_stages=2 // call.wide,
    )
    return Forms(inverse, w, own, far_q, far_k, read, met, decays, totals)
