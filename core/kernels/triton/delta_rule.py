"""The delta rule with no decay, one per head or one per key channel, by Triton: a differentiable operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from longseq.core.kernels.triton import (
    delta_channels,
    delta_chunks,
    delta_gradients,
    delta_walks,
    gla_chunks,
)
from longseq.core.kernels.triton._plan import Gates, Plan, apply
from longseq.core.kernels.triton.common import choose_tile, launch, padded, plain, rows, strides
from longseq.core.ops import _native

_CHUNK = 64  # the inverse is written out for four blocks of 16


def _plan(q: Tensor, k: Tensor, v: Tensor) -> Plan:
    batch, length, heads, value = v.shape
    tile = choose_tile(length, _CHUNK, q.shape[3], value, q, k, v)._replace(chunk=_CHUNK)
    return Plan(tile, batch, length, q.shape[2], heads, q.shape[3], value)


@dataclass(frozen=True)
class _Call:
    """A call's arguments, dense where the kernels want it, and what its passes share.

    Attributes:
        plan: sizes.
        q: queries.
        k: keys.
        v: values.
        beta: (B, L, H), float32.
        log_decay: (B, L, H), (B, L, G, K) or None, float32.
        scale: of the output.
    """

    plan: Plan
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None
    scale: float

    @property
    def channel(self) -> bool:
        """Returns whether there is a decay per key channel."""
        return self.log_decay is not None and self.log_decay.ndim == 4

    @property
    def wide(self) -> int:
        """Returns 2 where tiles are twice as large in bytes as for bfloat16, else 1."""
        return 1 if self.plan.tile.dot == tl.bfloat16 else 2

    @property
    def exact(self) -> str:
        """Returns how the triangle's float32 blocks are multiplied: better than its inverse is used."""
        if self.wide == 1:
            return "tf32"  # the inverse is rounded to bfloat16
        return "ieee" if self.plan.tile.precision == "ieee" else "tf32x3"

    def new(self, *shape: int, heads: int | None = None, full: bool = False) -> Tensor:
        """Returns memory for something per chunk: in the dtype that is multiplied, or float32."""
        plan = self.plan
        dtype = torch.bfloat16 if plan.tile.dot == tl.bfloat16 and not full else torch.float32
        lead = (plan.batch, plan.heads if heads is None else heads, plan.chunks)
        return self.v.new_empty((*lead, *shape), dtype=dtype)

    def launch(self, kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
        """Runs a kernel that multiplies, with what all of them take by name."""
        tile = self.plan.tile
        launch(kernel, programs, *args, **{"DOT": tile.dot, "PRECISION": tile.precision, **meta})

    def widths(self, most: int = 64) -> dict[str, int]:
        """Returns block widths of keys and values and the widths themselves, as the kernels take them."""
        key, value = self.plan.key, self.plan.value
        blocks = {"BK": min(most, padded(key)), "BV": min(most, padded(value))}
        return {"K": key, "V": value, "T": _CHUNK, "SHARE": self.plan.shared, **blocks}


@dataclass(frozen=True)
class _Forms:
    """What one pass over the chunks leaves for others.

    Attributes:
        inverse: M (B, H, C, T, T).
        w: M diag(β) F (B, H, C, T, K).
        states: before the chunks (B, H, C, K, V).
        written: U (B, H, C, T, V).
        far_q: queries decayed from the chunk's start, or q.
        far_k: keys decayed to the chunk's end, or k.
        read: decayed products of queries and keys (B, G, C, T, T), with a decay per channel.
        met: decayed products of keys, alike.
        through: factors from the chunk's start (B, H, C, T), with a decay per head.
        behind: factors to its end, alike.
        totals: factors over it (B, H, C), or log-decays (B, G, C, K).
    """

    inverse: Tensor
    w: Tensor
    states: Tensor
    written: Tensor
    far_q: Tensor
    far_k: Tensor
    read: Tensor | None
    met: Tensor | None
    through: Tensor | None
    behind: Tensor | None
    totals: Tensor | None


def _walk(call: _Call, kernel: Any, tiles: int, *args: Any) -> None:
    """Runs ``delta_walks.walk`` or ``walk_back``, whose time is that of its steps, one after the other.

    Args:
        call: the call.
        kernel: which.
        tiles: of T × K that a step loads ahead.
        *args: the kernel's.
    """
    plan = call.plan
    # Fewer columns a program where there are few heads, or where products are not the tensor cores'.
    few = call.wide == 2 or plan.batch * plan.heads * plan.value < 64 * 132
    block = min(16 if few else 32, padded(plan.value))
    row = padded(plan.key) * 2 * call.wide * tiles  # bytes
    at_once, stages = _CHUNK, 1
    while at_once > 16 and at_once * row > 1 << 16:
        at_once //= 2
    while stages < 3 and (stages + 1) * _CHUNK * row + (1 << 14) <= _shared_memory(call.v):
        stages += 1
    call.launch(
        kernel, plan.batch * plan.heads * -(-plan.value // block), *args, CHANNEL=call.channel,
        **call.widths() | {"BK": padded(plan.key), "BV": block, "BT": at_once},
        num_warps=4 * call.wide, num_stages=stages,
    )  # fmt: skip


def _shared_memory(tensor: Tensor) -> int:
    """Returns the bytes of shared memory that a program may use where a tensor is."""
    least = 101376  # of the GPUs since Ampere
    if not tensor.is_cuda:
        return least
    # An attribute that older versions of torch do not have.
    there = getattr(torch.cuda.get_device_properties(tensor.device), "shared_memory_per_block_optin", least)
    return int(there)


def _run(call: _Call, initial_state: Tensor | None) -> tuple[_Forms, Tensor]:
    """Returns what the chunks come to, and the last state (B, H, K, V)."""
    plan, q, k, g = call.plan, call.q, call.k, call.log_decay
    per_chunk = plan.batch * plan.heads * plan.chunks
    sizes = (plan.length, plan.chunks, plan.heads)
    read = met = through = behind = totals = None
    far_q, far_k = q, k
    if call.channel:
        read = call.new(_CHUNK, _CHUNK, heads=plan.groups)
        met = call.new(_CHUNK, _CHUNK, heads=plan.groups, full=True)
        programs = plan.batch * plan.groups * plan.chunks
        call.launch(
            delta_channels.channel_products, programs * (_CHUNK // 16),
            q, k, g, read, met, call.scale, plan.length, plan.chunks, plan.groups, *strides(q), *strides(k),
            K=plan.key, T=_CHUNK, BK=padded(plan.key), num_warps=4 if plan.key <= 64 else 8, num_stages=1,
        )  # fmt: skip
        far_q, far_k = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
        totals = call.new(plan.key, heads=plan.groups, full=True)
        block = min(64, padded(plan.key))
        launch(
            gla_chunks.decay_rows, programs * -(-plan.key // block),
            q, k, g, far_q, far_k, totals, plan.length, plan.chunks, plan.groups, plan.key,
            *strides(q), *strides(k), T=_CHUNK, BK=block, num_warps=4, num_stages=1,
        )  # fmt: skip
    elif g is not None:
        through, behind = (call.new(_CHUNK, full=True) for _ in range(2))
        totals = call.new(full=True)
    inverse, w = call.new(_CHUNK, _CHUNK), call.new(_CHUNK, plan.key)
    own, written = call.new(_CHUNK, plan.value), call.new(_CHUNK, plan.value)
    call.launch(
        delta_chunks.invert_chunks, per_chunk, k, call.beta, None if call.channel else g, met, inverse,
        *sizes, *strides(k), SHARE=plan.shared, K=plan.key, BK=min(32, padded(plan.key)),
        EXACT=call.exact,
        num_warps=2, num_stages=1,
    )  # fmt: skip
    call.launch(
        delta_chunks.write_forms, per_chunk,
        k, call.v, call.beta, g, inverse, w, own, through, behind, totals if through is not None else None,
        *sizes, *strides(k), *strides(call.v), CHANNEL=call.channel, **call.widths(),
        num_warps=4 * call.wide, num_stages=2 // call.wide,
    )  # fmt: skip
    states = call.new(plan.key, plan.value)
    last = states.new_empty((plan.batch, plan.heads, plan.key, plan.value), dtype=torch.float32)
    _walk(
        call, delta_walks.walk, 2,
        far_k, w, own, initial_state, behind, totals, states, written, last, *sizes, *strides(far_k),
    )  # fmt: skip
    return _Forms(inverse, w, states, written, far_q, far_k, read, met, through, behind, totals), last


@torch.library.custom_op("longseq::triton_delta_rule", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = rows(q), rows(k), rows(v)
    call = _Call(_plan(q, k, v), q, k, v, beta.contiguous(), plain(log_decay), scale)
    forms, last = _run(call, plain(initial_state))
    out = v.new_empty(v.shape)
    # (B, H, C, T, V) seen as (B, L, H, V), the length a multiple of the chunk.
    written = forms.written.flatten(2, 3).transpose(1, 2)
    if call.channel:
        apply(call.plan, Gates(), scale, (forms.far_q, None, written), forms.states, out, mode=1,
              scores=forms.read)  # fmt: skip
    else:
        apply(call.plan, Gates(call.log_decay), scale, (q, k, written), forms.states, out)
    return out, last


@_attend.register_fake
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, _, heads, value = v.shape
    return v.new_empty(v.shape), v.new_empty((batch, heads, q.shape[3], value), dtype=torch.float32)


@torch.library.custom_op("longseq::triton_delta_rule_backward", mutates_args=())
def _attend_backward(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    do, q, k, v = rows(do), rows(q), rows(k), rows(v)
    call = _Call(_plan(q, k, v), q, k, v, beta.contiguous(), plain(log_decay), scale)
    forms, _ = _run(call, plain(initial_state))
    plan, g = call.plan, call.log_decay
    per_chunk = plan.batch * plan.heads * plan.chunks
    sizes = (plan.length, plan.chunks, plan.heads)
    operands = {"num_warps": 8, "num_stages": 1}

    own, dwritten = (torch.empty_like(forms.written) for _ in range(2))
    call.launch(
        delta_walks.read_gradients, per_chunk,
        q, k, do, g, forms.read, own, scale, *sizes, *strides(q), *strides(k), *strides(do),
        **call.widths(), num_warps=4 * call.wide, num_stages=2 // call.wide,
    )  # fmt: skip
    dstates = torch.empty_like(forms.states)
    dinitial = v.new_empty((plan.batch, plan.heads, plan.key, plan.value), dtype=torch.float32)
    _walk(
        call, delta_walks.walk_back, 3,
        forms.far_q, forms.far_k, forms.w, do, own, plain(dlast), forms.through, forms.behind, forms.totals,
        dstates, dwritten, dinitial, scale, *sizes, *strides(forms.far_q), *strides(forms.far_k),
        *strides(do),
    )  # fmt: skip

    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    dread, dmet = (call.new(_CHUNK, _CHUNK) for _ in range(2))
    dbeta_near, dlog_near = (call.new(_CHUNK, full=True) for _ in range(2))
    call.launch(
        delta_gradients.pair_gradients, per_chunk,
        q, k, v, do, call.beta, g, forms.met, forms.inverse, forms.written, dwritten, dv, dread, dmet,
        dbeta_near, dlog_near, scale, *sizes, *strides(q), *strides(k), *strides(v), *strides(do),
        **call.widths(64 // call.wide), **operands,
    )  # fmt: skip
    near: list[Tensor | None] = [None, None, None]
    if call.channel:
        shared = (plan.batch, plan.groups, plan.shared, plan.chunks, _CHUNK, _CHUNK)
        if plan.shared > 1:
            dread, dmet = (x.view(shared).sum(2, dtype=torch.float32) for x in (dread, dmet))
        near = [q.new_empty(q.shape, dtype=torch.float32) for _ in range(3)]
        call.launch(
            delta_channels.channel_products_backward,
            plan.batch * plan.groups * plan.chunks * (_CHUNK // 16),
            q, k, g, dread, dmet, *near, plan.length, plan.chunks, plan.groups, *strides(q), *strides(k),
            K=plan.key, T=_CHUNK, BK=padded(plan.key), num_warps=4 if plan.key <= 64 else 8, num_stages=1,
        )  # fmt: skip
    per_head = (plan.batch, plan.length, plan.heads, plan.key)
    joined = plan.shared > 1  # then what the heads of a group come to is summed in float32
    dq, dk = (q.new_empty(per_head, dtype=torch.float32 if joined else x.dtype) for x in (q, k))
    dbeta = torch.empty_like(call.beta)
    dlog = None if g is None else g.new_empty(per_head if call.channel else g.shape)
    call.launch(
        delta_gradients.finish_gradients, per_chunk,
        q, k, do, call.beta, g, forms.through, forms.behind, forms.totals, forms.written, dwritten,
        forms.states, dstates, dread, dmet, dbeta_near, dlog_near, *near, dq, dk, dbeta, dlog,
        scale, *sizes, *strides(q), *strides(k), *strides(do), CHANNEL=call.channel,
        **call.widths(64 // call.wide), **operands,
    )  # fmt: skip
    if joined:
        dq, dk = (x.unflatten(2, (plan.groups, -1)).sum(3).to(y.dtype) for x, y in ((dq, q), (dk, k)))
        if call.channel and dlog is not None:
            dlog = dlog.unflatten(2, (plan.groups, -1)).sum(3)
    dfirst = None if initial_state is None else dinitial.to(initial_state.dtype)
    return [v.new_empty((0,)) if t is None else t for t in (dq, dk, dv, dbeta, dlog, dfirst)]


@_attend_backward.register_fake
def _attend_backward_fake(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    tensors = (q, k, v, beta, log_decay, initial_state)
    return [v.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in tensors]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    do = torch.zeros_like(ctx.saved_tensors[2]) if do is None else do
    grads = _call_backward(do, dlast, *ctx.saved_tensors, ctx.scale)
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None)


_attend.register_autograd(_backward, setup_context=_setup)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, range(6), info, in_dims, args), (0, 0)


def _backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call_backward, range(8), info, in_dims, args), (0,) * 6


_call_backward = _native.transformable(_attend_backward, _backward_vmap)
_call = _native.transformable(_attend, _vmap, _setup, _backward)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs S_t = D_t S_{t-1} + β_t k_t (v_t - (D_t S_{t-1})ᵀ k_t)ᵀ, o_t = scale · S_tᵀ q_t.

    Args:
        q: queries (B, L, G, K); bfloat16, float16 or float32, as k and v.
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G.
        beta: (B, L, H).
        log_decay: (B, L, H) or (B, L, G, K), -inf at resets; None for no decay.
        scale: factor of the output.
        initial_state: (B, H, K, V) or None.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32.
    """
    decay = None if log_decay is None else log_decay.float()
    state = None if initial_state is None else initial_state.float()
    return _call(q, k, v, beta.float(), decay, state, float(scale))
