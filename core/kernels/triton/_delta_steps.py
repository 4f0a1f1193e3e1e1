"""Host side of the delta rule's walks over chunks: segments, the order of launches, outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels.triton import delta_walks
from longseq.core.kernels.triton._delta_plan import CHUNK, Call, Forms, shared_memory
from longseq.core.kernels.triton._plan import Gates, apply
from longseq.core.kernels.triton.common import launch, padded, strides

_PROGRAMS = 264  # that keep a GPU busy: two per multiprocessor
_SEGMENT = 8  # chunks that a segment has at least


@dataclass(frozen=True)
class Steps:
    """How a walk is cut up: columns of the state per program, segments of the sequence, chunks per
    segment."""

    block: int
    segments: int
    per: int


def steps_of(call: Call) -> Steps:
    """Returns how the walks of a call are cut up: each takes as long as a segment's steps, one by
    one."""
    plan = call.plan
    block = min(32 // call.wide, padded(plan.value))
    programs = plan.batch * plan.heads * -(-plan.value // block)
    segments = 1
    if padded(plan.key) <= 128 and programs > 0:  # a transition fits the shared memory
        segments = max(1, min(_PROGRAMS // programs, plan.chunks // _SEGMENT))
    per = -(-plan.chunks // segments)
    return Steps(block, -(-plan.chunks // per), per)


def walk(call: Call, kernel: Any, tiles: int, steps: Steps, *args: Any, **meta: Any) -> None:
    """Runs ``delta_walks.walk`` or ``walk_back``.

    Args:
        call: the call.
        kernel: which.
        tiles: of T × K that a step loads ahead.
        steps: how it is cut up.
        *args: the kernel's.
        **meta: more of its compile-time arguments.
    """
    plan = call.plan
    stages = 1
    alone, beside = shared_memory(call.v)
    while stages < 3 and call.room(tiles, stages + 1) <= (alone if stages == 1 else beside):
        stages += 1
    meta = (
        call.widths() | {"BK": padded(plan.key), "BV": steps.block, "BT": call.rows(tiles)} | meta
    )
    call.launch(
        kernel,
        plan.batch * plan.heads * steps.segments * -(-meta["V"] // meta["BV"]),
        *args,
        CHANNEL=call.channel,
        num_warps=4 * call.wide,
        num_stages=stages,
        **meta,
    )


def walk_on(
    call: Call,
    forms: Forms,
    steps: Steps,
    first: Tensor | None,
    last: Tensor,
    *,
    keep: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    unit: bool = False,
) -> None:
    """Runs ``delta_walks.walk``: writes the states before the chunks and U where ``keep`` is
    given."""
    states, written = (None, None) if keep is None else keep
    own = {"UNIT": unit} | ({"V": call.plan.key} if unit else {})
    walk(
        call,
        delta_walks.walk,
        2 if out is None else 3,
        steps,
        forms.far_q,
        forms.far_k,
        forms.w,
        None if unit else forms.own,
        first,
        *forms.decays,
        forms.totals,
        forms.read,
        states,
        written,
        out,
        last,
        call.scale,
        *call.sizes,
        steps.segments,
        steps.per,
        *strides(forms.far_q),
        *strides(forms.far_k),
        **own,
    )


def join(
    call: Call, steps: Steps, transitions: Tensor, own: Tensor, first: Tensor | None, backward: bool
) -> Tensor:
    """Returns the state before each segment, or the gradient of that behind it."""
    plan = call.plan
    joined = torch.empty_like(own)
    launch(
        delta_walks.join_segments,
        plan.batch * plan.heads * -(-plan.value // 16),
        transitions,
        own,
        first,
        joined,
        steps.segments,
        BACKWARD=backward,
        K=plan.key,
        V=plan.value,
        BK=padded(plan.key),
        BV=16,
        EXACT=call.exact,
        num_warps=4,
        num_stages=1,
    )
    return joined


def firsts_of(
    call: Call, forms: Forms, steps: Steps, initial: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the state before each segment, and the transitions of the segments where there are
    several."""
    if steps.segments == 1:
        return initial, None
    transitions, own = call.state(steps.segments, call.plan.key), call.state(steps.segments)
    walk_on(call, forms, steps, None, transitions, unit=True)
    walk_on(call, forms, steps, None, own)
    return join(call, steps, transitions, own, initial, False), transitions


def outputs(call: Call, forms: Forms, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the output (B, L, H, V) and the final state (B, H, K, V)."""
    plan = call.plan
    out = call.v.new_empty(call.v.shape)
    steps = steps_of(call)
    firsts, _ = firsts_of(call, forms, steps, initial)
    last = call.state(steps.segments)
    if call.fused:
        walk_on(call, forms, steps, firsts, last, out=out)
        return out, last[:, :, -1].contiguous()
    states, written = call.new(plan.key, plan.value), call.new(CHUNK, plan.value)
    walk_on(call, forms, steps, firsts, last, keep=(states, written))
    # (B, H, C, T, V) seen as (B, L, H, V), the length a multiple of the chunk.
    values = written.flatten(2, 3).transpose(1, 2)
    if call.channel:
        apply(
            plan,
            Gates(),
            call.scale,
            (forms.far_q, None, values),
            states,
            out,
            mode=1,
            scores=forms.read,
        )
    else:
        apply(plan, Gates(call.log_decay), call.scale, (call.q, call.k, values), states, out)
    return out, last[:, :, -1].contiguous()
