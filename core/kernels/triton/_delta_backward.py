"""Host side of the delta rule's backward pass: states are computed again, once, and then all
gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longseq.core.kernels.triton import (
    delta_channel_gradients,
    delta_channels,
    delta_gradients,
    delta_walks,
)
from longseq.core.kernels.triton._delta_plan import CHUNK, Call, Forms
from longseq.core.kernels.triton._delta_steps import (
    firsts_of,
    join,
    steps_of,
    walk,
    walk_on,
)
from longseq.core.kernels.triton.common import padded, strides


@dataclass(frozen=True)
class Gradients:
    """Gradients of a call: of q, k, v, beta, log-decay, and of the state handed in."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None
    state: Tensor


def gradients(
    call: Call, forms: Forms, do: Tensor, initial: Tensor | None, dlast: Tensor | None
) -> Gradients:
    """Returns all gradients of a call; states are computed again, once.

    Args:
        call: the call.
        forms: what there is of every chunk by itself.
        do: gradient of the output, the last dimension dense.
        initial: state handed in.
        dlast: gradient of that handed out.
    """
    plan, q, k, v, g = call.plan, call.q, call.k, call.v, call.log_decay
    steps = steps_of(call)
    firsts, transitions = firsts_of(call, forms, steps, initial)
    states, written = call.new(plan.key, plan.value), call.new(CHUNK, plan.value)
    walk_on(call, forms, steps, firsts, call.state(steps.segments), keep=(states, written))

    du = None
    if not call.fused:
        du = torch.empty_like(written)
        call.launch(
            delta_gradients.read_gradients,
            call.programs,
            q,
            k,
            do,
            g,
            forms.read,
            du,
            call.scale,
            *call.sizes,
            *strides(q),
            *strides(k),
            *strides(do),
            **call.widths(),
            num_warps=4 * call.wide,
            num_stages=2 // call.wide,
        )
    dstates, dwritten = torch.empty_like(states), torch.empty_like(written)

    def walk_back(last: Tensor | None, first: Tensor, keep: bool) -> None:
        kept = (dstates, dwritten) if keep else (None, None)
        walk(
            call,
            delta_walks.walk_back,
            3,
            steps,
            forms.far_q,
            forms.far_k,
            forms.w,
            do,
            last,
            du,
            *forms.decays,
            forms.totals,
            forms.read,
            *kept,
            first,
            call.scale,
            *call.sizes,
            steps.segments,
            steps.per,
            *strides(forms.far_q),
            *strides(forms.far_k),
            *strides(do),
        )

    dfirst = call.state(steps.segments)
    lasts = dlast
    if transitions is not None:
        walk_back(None, dfirst, False)
        lasts = join(call, steps, transitions, dfirst, dlast, True)
    walk_back(lasts, dfirst, True)

    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    per_head = (plan.batch, plan.length, plan.heads, plan.key)
    joined = plan.shared > 1  # then what the heads of a group come to is summed in float32
    dq, dk = (x.new_empty(per_head, dtype=torch.float32 if joined else x.dtype) for x in (q, k))
    dbeta = torch.empty_like(call.beta)
    dlog = None if g is None else g.new_empty(per_head if call.channel else g.shape)
    found = (dq, dk, dv, dbeta, dlog)
    kept = (written, dwritten, states, dstates)
    if call.channel:
        _channel_gradients(call, forms, do, kept, found)
    else:
        call.launch(
            delta_gradients.chunk_gradients,
            call.programs,
            q,
            k,
            v,
            do,
            call.beta,
            *forms.decays,
            forms.totals,
            forms.inverse,
            *kept,
            *found,
            call.scale,
            *call.sizes,
            *strides(q),
            *strides(k),
            *strides(v),
            *strides(do),
            **call.widths(32),
            num_warps=4 * call.wide,
            num_stages=1,
        )
    if joined:
        dq, dk = (
            x.unflatten(2, (plan.groups, -1)).sum(3).to(y.dtype) for x, y in ((dq, q), (dk, k))
        )
        if call.channel and dlog is not None:
            dlog = dlog.unflatten(2, (plan.groups, -1)).sum(3)
    return Gradients(dq, dk, dv, dbeta, dlog, dfirst[:, :, 0])


def _channel_gradients(
    call: Call,
    forms: Forms,
    do: Tensor,
    kept: tuple[Tensor, Tensor, Tensor, Tensor],
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
) -> None:
    """Writes the gradients of a call with a decay per key channel.

    Args:
        call: the call.
        forms: what there is of every chunk by itself.
        do: gradient of the output.
        kept: U, its gradient, the states before the chunks, and the gradients of those behind them.
        found: memory for those of q, k, v, beta and the log-decays.
    """
    plan, q, k, v, g = call.plan, call.q, call.k, call.v, call.log_decay
    written, dwritten, states, dstates = kept
    dq, dk, dv, dbeta, dlog = found
    widths = call.widths(64 // call.wide)
    widths["BK"] = min(32, widths["BK"])
    dread, dmet = (call.new(CHUNK, CHUNK) for _ in range(2))
    dbeta_near = call.new(CHUNK, full=True)
    call.launch(
        delta_channel_gradients.pair_gradients,
        call.programs,
        v,
        do,
        call.beta,
        forms.met,
        forms.inverse,
        written,
        dwritten,
        dv,
        dread,
        dmet,
        dbeta_near,
        call.scale,
        *call.sizes,
        *strides(v),
        *strides(do),
        **{name: widths[name] for name in ("SHARE", "V", "T", "BV")},
        num_warps=4 * call.wide,
        num_stages=1,
    )
    if plan.shared > 1:
        shared = (plan.groups, plan.shared)
        dread, dmet = (x.unflatten(1, shared).sum(2, dtype=torch.float32) for x in (dread, dmet))
    near = [q.new_empty(q.shape, dtype=torch.float32) for _ in range(3)]
    call.launch(
        delta_channels.channel_products_backward,
        plan.batch * plan.groups * plan.chunks * (CHUNK // 16),
        q,
        k,
        g,
        dread,
        dmet,
        *near,
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
    call.launch(
        delta_channel_gradients.join_gradients,
        call.programs,
        q,
        k,
        do,
        call.beta,
        g,
        written,
        dwritten,
        states,
        dstates,
        dbeta_near,
        *near,
        dq,
        dk,
        dbeta,
        dlog,
        call.scale,
        *call.sizes,
        *strides(q),
        *strides(k),
        *strides(do),
        **widths,
        num_warps=4 * call.wide,
        num_stages=1,
    )
