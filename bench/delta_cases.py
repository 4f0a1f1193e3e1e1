"""The delta rule in the speed benchmarks: its peers and its bound."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from longseq.bench.case_tools import Tensors, draws, make_program, moved_bytes, ours
from longseq.bench.chunked_cases import CHUNK
from longseq.bench.measure import Case, Mode, Program, Shape, Side, Work
from longseq.bench.peers import load
from longseq.core.ops.delta_rule import delta_rule, delta_rule_reference

HEAD = 128
_INSIDE = 32  # positions of our kernel's chunks, for the least work that it does


def delta_work(tokens: float, heads: int, keys: int, values: int, shape: Shape, mode: Mode) -> Work:
    """Returns the work of the delta rule in chunks: scores of keys and queries, a triangular
    system, and three products with the state; backward eight, and twice the rest.

    Args:
        tokens: B · L.
        heads: H.
        keys: K of a head.
        values: V of a head.
        shape: of the cell.
        mode: "forward" or "training"; a step reads and writes the state.
    """
    if mode == "step":
        moved = 8.0 * keys * values + shape.item * 2 * (keys + values)
        return Work(3.0 * tokens * heads * keys * values, tokens * heads, tokens * heads * moved)
    state, inside = keys * values, _INSIDE / 2 * (keys + values)
    fma = 3 * state + 2 * inside
    if mode == "training":
        fma += 8 * state + _INSIDE / 2 * (6 * keys + 5 * values)
    moved = moved_bytes(
        shape, mode, tokens * heads * (2 * keys + values + 2), tokens * heads * values
    )
    return Work(tokens * heads * fma, tokens * heads, moved)


def _inputs(shape: Shape) -> Tensors:
    draw, heads = draws(), max(1, shape.width // HEAD)
    size = (shape.batch, shape.length, heads)
    rows = {name: draw(*size, min(HEAD, shape.width)) for name in ("v", "q", "k")}
    rows |= {name: F.normalize(rows[name], dim=-1) for name in ("q", "k")}
    gates = {"beta": draw(*size).sigmoid(), "log_decay": F.logsigmoid(3 + draw(*size))}
    return {name: tensor.to(shape.torch_dtype) for name, tensor in (rows | gates).items()}


def _ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda **given: delta_rule(**given, chunk_size=CHUNK)[0], tensors)


def _sequential(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda **given: delta_rule_reference(**given)[0], tensors)


def _fla(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    chunked = load("fla:gated_delta_rule").naive_chunk_gated_delta_rule

    def call(v: Tensor, q: Tensor, k: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
        out: Tensor = chunked(q, k, v, log_decay, beta, chunk_size=CHUNK)[0]
        return out

    return make_program(call, tensors)


def _work(shape: Shape, mode: Mode) -> Work:
    heads = max(1, shape.width // HEAD)
    width = min(HEAD, shape.width)
    return delta_work(shape.batch * shape.length, heads, width, width, shape, mode)


DELTA: tuple[Case, ...] = (
    Case(
        "delta_rule",
        f"the delta rule, a decay per head: D in heads of {HEAD}",
        "operator",
        _inputs,
        (
            ours(_ours),
            Side("fla", _fla, "fla", note=f"its chunked form in torch, chunks of {CHUNK}"),
            Side("sequential", _sequential, note="the recurrence in torch, position by position"),
        ),
        _work,
    ),
)
