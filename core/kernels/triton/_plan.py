"""Host side of the kernels over chunks: buffers, grids and the order of launches, both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.triton.chunk_states import chunk_states, pass_states
from longseq.core.kernels.triton.chunks import chunk_apply, gate_gradients
from longseq.core.kernels.triton.common import Tile, launch, strides


@dataclass(frozen=True)
class Plan:
    """Sizes of a call.

    Attributes:
        tile: its configuration.
        batch: B.
        length: L.
        groups: heads of queries and keys, G.
        heads: heads of values, H.
        key: K.
        value: V.
    """

    tile: Tile
    batch: int
    length: int
    groups: int
    heads: int
    key: int
    value: int

    @property
    def chunks(self) -> int:
        """Returns the number of chunks."""
        return -(-self.length // self.tile.chunk)

    @property
    def shared(self) -> int:
        """Returns how many heads share a key."""
        return self.heads // self.groups


class Gates(NamedTuple):
    """Per-position factors (B, L, H), float32 and dense; None where there are none.

    Attributes:
        log_decay: of the state.
        weight: of what is written.
        row: of what is read.
        column: beside the gradient of the output, for the normaliser.
    """

    log_decay: Tensor | None = None
    weight: Tensor | None = None
    row: Tensor | None = None
    column: Tensor | None = None


def local_states(
    plan: Plan,
    gates: Gates,
    scale: float,
    k: Tensor,
    v: Tensor,
    backward: bool,
    norm: bool,
    per_head_keys: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns what each chunk adds to the state (B, H, C, K, V), its total log-decay, and what it
    adds to n.

    Args:
        plan: sizes.
        gates: factors.
        scale: of the scores; used backwards.
        k: keys, or queries backwards.
        v: values, or the output's gradient backwards.
        backward: whether this is for the gradient of the state.
        norm: whether there is a normaliser.
        per_head_keys: whether k has H heads instead of G.
    """
    block_k, block_v = plan.tile.widths(plan.key, plan.value)
    lead = (plan.batch, plan.heads, plan.chunks)
    states = k.new_empty((*lead, plan.key, plan.value), dtype=torch.float32)
    totals = k.new_empty(lead, dtype=torch.float32)
    columns = k.new_empty((*lead, plan.key), dtype=torch.float32) if norm else None
    tiles = -(-plan.key // block_k) * -(-plan.value // block_v)
    launch(
        chunk_states,
        plan.batch * plan.heads * plan.chunks * tiles,
        k,
        v,
        *gates,
        states,
        columns,
        totals,
        scale,
        plan.length,
        plan.chunks,
        plan.heads,
        plan.key,
        plan.value,
        *strides(k),
        *strides(v),
        SHARE=1 if per_head_keys else plan.shared,
        BACKWARD=backward,
        NORM=norm,
        BK=block_k,
        BV=block_v,
        **plan.tile.launch(),
    )
    return states, totals, columns


def hand_on(
    plan: Plan,
    states: Tensor,
    first: Tensor | None,
    totals: Tensor | None,
    backward: bool = False,
    before: Tensor | None = None,
    per_key: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Turns what chunks add (B, H, C, …) into the states before them, in place.

    Args:
        plan: sizes.
        states: (B, H, C, K, V), or (B, H, C, K) for the normaliser.
        first: the state handed in.
        totals: log-decays of the chunks, (B, H, C) or (B, G, C, K); None for no decay.
        backward: whether to go from the last chunk to the first.
        before: the forward states; asks for the decays' gradient.
        per_key: whether totals are (B, G, C, K).

    Returns:
        The state handed out, and the gradient of the totals from what is carried through: (B, H,
        C), or (B, H, C, K); None without ``before``.
    """
    key, value = plan.key, plan.value if states.dim() == 5 else 1
    # Elementwise work: 4 warps, and tiles of 1024 so that few heads still make many programs.
    block_k, block_v = 16, 64 if value > 16 else 16
    tiles_v = -(-value // block_v)
    tiles = -(-key // block_k) * tiles_v
    last = states.new_empty((plan.batch, plan.heads, *states.shape[3:]))
    partial = None
    if before is not None:
        shape = (tiles_v, key) if per_key else (tiles,)
        partial = states.new_empty((plan.batch, plan.heads, plan.chunks, *shape))
    launch(
        pass_states,
        plan.batch * plan.heads * tiles,
        states,
        first,
        last,
        totals,
        before,
        partial,
        plan.chunks,
        plan.heads,
        key,
        value,
        SHARE=plan.shared,
        PER_KEY=per_key,
        BACKWARD=backward,
        BK=block_k,
        BV=block_v,
        num_warps=4,
        num_stages=1,
    )
    return last, None if partial is None else partial.sum(3)


@dataclass(frozen=True)
class Normaliser:
    """What the mLSTM's output is divided by.

    Attributes:
        stabiliser: m (B, L, H).
        states: n before each chunk (B, H, C, K).
        eps: added to the divisor.
    """

    stabiliser: Tensor
    states: Tensor
    eps: float


def apply(
    plan: Plan,
    gates: Gates,
    scale: float,
    operands: tuple[Tensor, Tensor | None, Tensor | None],
    states: Tensor,
    out: Tensor,
    *,
    backward: bool = False,
    over_values: bool = False,
    mode: int = 0,
    skip: Tensor | None = None,
    scores: Tensor | None = None,
    columns: Tensor | None = None,
    normaliser: Normaliser | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Runs ``chunks.chunk_apply``.

    Args:
        plan: sizes.
        gates: factors.
        scale: of the scores.
        operands: its a, b, c; None where the mode has no use for them.
        states: (B, H, C, K, V).
        out: what it writes, dense (B, L, H, V), or (B, L, G, K) if ``over_values``.
        backward: its BACKWARD.
        over_values: whether the reduced dimension is V, and heads that share a key are summed.
        mode: its MODE.
        skip: (H, V) float32, a multiple of c added to the output.
        scores: given or stored scores (B, G, C, T, T).
        columns: the normaliser's states or their gradient (B, H, C, K), for the gradients of q and
            k.
        normaliser: given if the output is divided.

    Returns:
        nᵀq and 1 / the divisor (B, L, H), for an output that is divided.
    """
    a, b, c = operands
    nothing = (0, 0, 0)
    if over_values:
        heads, loop, share = plan.groups, plan.shared, 1
        inner, outer, state_strides = plan.value, plan.key, (1, plan.value)
    else:
        heads, loop, share = plan.heads, 1, plan.shared
        inner, outer, state_strides = plan.key, plan.value, (plan.value, 1)
    block_m, block_n = plan.tile.widths(inner, outer)
    norm, stabiliser, eps = 0, None, 0.0
    product = divided = None
    if columns is not None:
        norm = 2
    if normaliser is not None:
        norm, stabiliser, columns, eps = 1, normaliser.stabiliser, normaliser.states, normaliser.eps
        product, divided = (torch.empty_like(stabiliser) for _ in range(2))
    launch(
        chunk_apply,
        plan.batch * heads * plan.chunks * -(-outer // block_n),
        a,
        b,
        c,
        states,
        gates.log_decay,
        gates.weight,
        gates.row,
        stabiliser,
        gates.column,
        columns,
        skip,
        scores,
        out,
        product,
        divided,
        scale,
        eps,
        plan.length,
        plan.chunks,
        heads,
        inner,
        outer,
        *strides(a),
        *(nothing if b is None else strides(b)),
        *(nothing if c is None else strides(c)),
        *state_strides,
        LOOP=loop,
        SHARE=share,
        BACKWARD=backward,
        MODE=mode,
        NORM=norm,
        BM=block_m,
        BN=block_n,
        **plan.tile.launch(),
    )
    return product, divided


@dataclass(frozen=True)
class Gradients:
    """Gradients of a call: of q, k, v, log-decay, weight, and of the state and normaliser handed
    in."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    weight: Tensor | None
    state: Tensor
    column: Tensor | None


def gradients(
    plan: Plan,
    gates: Gates,
    scale: float,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    initial: tuple[Tensor | None, Tensor | None],
    dlast: tuple[Tensor | None, Tensor | None],
    skip: Tensor | None,
    of_gates: bool,
) -> Gradients:
    """Returns all gradients of a call with a decay per head; states are computed again, once.

    Args:
        plan: sizes.
        gates: factors; with a ``column`` there is a normaliser.
        scale: of the scores.
        q: queries.
        k: keys.
        v: values.
        do: gradient of the output, before it is multiplied by ``gates.row``.
        initial: state and normaliser handed in.
        dlast: gradients of those handed out.
        skip: (H, V).
        of_gates: whether gradients of log-decay and weight are wanted.
    """
    norm = gates.column is not None
    forwards = Gates(gates.log_decay, gates.weight)
    states, totals, columns = local_states(plan, forwards, scale, k, v, False, norm)
    hand_on(plan, states, initial[0], totals)
    if columns is not None:
        hand_on(plan, columns, initial[1], totals)
    dstates, _, dcolumns = local_states(plan, gates, scale, q, do, True, norm)
    decays = of_gates and gates.log_decay is not None
    dinitial, carried = hand_on(plan, dstates, dlast[0], totals, True, states if decays else None)
    dcolumn = None
    if dcolumns is not None:
        dcolumn, more = hand_on(plan, dcolumns, dlast[1], totals, True, columns if decays else None)
        carried = more if carried is None or more is None else carried + more

    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    # Only the gradients of q and k look at the normaliser's column; that of v has it in its
    # products.
    apply(plan, gates, scale, (k, q, do), dstates, dv, backward=True, skip=skip)
    apply(plan, gates, scale, (do, v, k), states, dq, over_values=True, columns=columns)
    apply(
        plan,
        gates,
        scale,
        (v, do, q),
        dstates,
        dk,
        over_values=True,
        backward=True,
        columns=dcolumns,
    )
    dlog_decay = dweight = None
    if of_gates:
        dlog_decay = None if gates.log_decay is None else torch.empty_like(gates.log_decay)
        dweight = None if gates.weight is None else torch.empty_like(gates.weight)
        block_k, block_v = (min(64, x) for x in plan.tile.widths(plan.key, plan.value))
        launch(
            gate_gradients,
            plan.batch * plan.heads * plan.chunks,
            q,
            k,
            v,
            do,
            states,
            dstates,
            *gates,
            columns,
            dcolumns,
            carried,
            dlog_decay,
            dweight,
            scale,
            plan.length,
            plan.chunks,
            plan.heads,
            plan.key,
            plan.value,
            *strides(q),
            *strides(k),
            *strides(v),
            *strides(do),
            SHARE=plan.shared,
            NORM=norm,
            BK=block_k,
            BV=block_v,
            # Four operands an iteration: more than one stage of them would not fit.
            **(plan.tile.launch() | {"num_stages": 1}),
        )
    return Gradients(dq, dk, dv, dlog_decay, dweight, dinitial, dcolumn)
