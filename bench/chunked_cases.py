"""Linear attentions in chunks in the speed benchmarks: SSD, mLSTM, retention, GLA; their peers and
bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.bench.case_tools import Tensors, draws, make_program, moved_bytes, ours, turned
from longseq.bench.measure import Case, Mode, Program, Shape, Side, Work
from longseq.bench.peers import load
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.ssd import ssd

CHUNK = 64
SSD_HEAD, SSD_STATES = 64, 128
HEADS = 4


def chunked(
    tokens: float,
    heads: int,
    groups: int,
    keys: int,
    values: int,
    decays: float,
    shape: Shape,
    mode: Mode,
) -> Work:
    """Returns the work of a linear attention in chunks: causal half of the scores, state in and
    state out.

    Args:
        tokens: B · L.
        heads: H.
        groups: of heads that share queries and keys.
        keys: K of a head.
        values: V of a head.
        decays: exponentials of a position, for the chunk's decay matrix and its borders.
        shape: of the cell.
        mode: the backward has two products for each of the forward.
    """
    if mode == "step":
        return Work(
            tokens * heads * 2 * keys * values,
            tokens * decays / CHUNK,
            8.0 * tokens * heads * keys * values
            + shape.item * tokens * heads * 2 * (keys + values),
        )
    inside = CHUNK / 2 * (groups * keys + heads * values)
    across = 2 * heads * keys * values
    times = 3 if mode == "training" else 1
    moved = moved_bytes(
        shape, mode, tokens * (2 * groups * keys + heads * values + heads), tokens * heads * values
    )
    return Work(times * tokens * (inside + across), times * tokens * decays, moved)


def _ssd_inputs(shape: Shape) -> Tensors:
    draw, heads, size = draws(), max(1, 2 * shape.width // SSD_HEAD), (shape.batch, shape.length)
    tensors = {
        "x": draw(*size, heads, SSD_HEAD),
        "dt": 0.1 * draw(*size, heads).sigmoid(),
        "B": draw(*size, 1, SSD_STATES),
        "C": draw(*size, 1, SSD_STATES),
    }
    return {k: v.to(shape.torch_dtype) for k, v in tensors.items()} | {
        "A": -torch.linspace(1, 16, heads)
    }


def _ssd_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda x, dt, A, B, C: ssd(x, dt, A, B, C, CHUNK)[0], tensors)


def _ssd_minimal(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    scan = load("mamba-ssm:ssd_minimal").ssd_minimal_discrete

    def call(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        out: Tensor = scan(
            x * dt.unsqueeze(-1), (A * dt).to(x.dtype), B, C, min(CHUNK, x.shape[1])
        )[0]
        return out

    return make_program(call, tensors)


def _ssd_transformers(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    scan = load("transformers.models.mamba2.modeling_mamba2").mamba2_chunk_scan
    return make_program(lambda x, dt, A, B, C: scan(x, dt, A, B, C, CHUNK), tensors)


def _ssd_work(shape: Shape, mode: Mode) -> Work:
    heads = max(1, 2 * shape.width // SSD_HEAD)
    tokens = shape.batch * shape.length
    return chunked(tokens, heads, 1, SSD_STATES, SSD_HEAD, heads * (CHUNK / 2 + 2), shape, mode)


def _mlstm_inputs(shape: Shape) -> Tensors:
    draw, size = draws(), (shape.batch, shape.length, HEADS)
    width = 2 * shape.width // HEADS
    tensors = {name: draw(*size, width) for name in ("q", "k", "v")}
    tensors |= {"i": draw(*size), "f": 4 + draw(*size)}
    return {name: tensor.to(shape.torch_dtype) for name, tensor in tensors.items()}


def _mlstm_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda q, k, v, i, f: mlstm(q, k, v, i, f, chunk_size=CHUNK)[0], tensors)


def _mlstm_kernels(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    kernel = load("mlstm_kernels.torch").get_mlstm_kernel("chunkwise--native_autograd")
    chunk = min(CHUNK, shape.length)
    return make_program(
        lambda q, k, v, i, f: kernel(q=q, k=k, v=v, i=i, f=f, chunk_size=chunk).transpose(1, 2),
        turned(tensors, "q", "k", "v", "i", "f"),
        transposed=True,
    )


def _mlstm_parallel(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    parallel = load("xlstm.blocks.mlstm.backends").parallel_stabilized_simple
    return make_program(
        lambda q, k, v, i, f: parallel(q, k, v, i.unsqueeze(-1), f.unsqueeze(-1)).transpose(1, 2),
        turned(tensors, "q", "k", "v", "i", "f"),
        transposed=True,
    )


def _mlstm_work(shape: Shape, mode: Mode) -> Work:
    width, tokens = 2 * shape.width // HEADS, shape.batch * shape.length
    return chunked(tokens, HEADS, HEADS, width, width, HEADS * (CHUNK / 2 + 4), shape, mode)


def _attention_inputs(shape: Shape) -> Tensors:
    draw, heads = draws(), 2 * HEADS
    size = (shape.batch, shape.length, heads, shape.width // heads)
    return {name: draw(*size).to(shape.torch_dtype) for name in ("q", "k", "v")}


def _retention_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    heads = tensors["q"].shape[2]
    decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(heads)))
    decays = decay.expand(shape.batch, shape.length, heads)
    return make_program(
        lambda q, k, v: linear_attention(q, k, v, decays, chunk_size=CHUNK)[0], tensors
    )


def _gla_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    decays = F.logsigmoid(draws(1)(*tensors["q"].shape)) / 16
    return make_program(
        lambda q, k, v: linear_attention(q, k, v, decays, chunk_size=CHUNK)[0], tensors
    )


def _softmax_attention(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2),
        turned(tensors, "q", "k", "v"),
        transposed=True,
    )


def _attention_work(decays: Callable[[Shape], float]) -> Callable[[Shape, Mode], Work]:
    def work(shape: Shape, mode: Mode) -> Work:
        heads = 2 * HEADS
        width, tokens = shape.width // heads, shape.batch * shape.length
        return chunked(tokens, heads, heads, width, width, decays(shape), shape, mode)

    return work


SDPA = Side(
    "sdpa",
    _softmax_attention,
    same=False,
    note="softmax attention of the same width: another function",
)

CHUNKED: tuple[Case, ...] = (
    Case(
        "ssd",
        f"Mamba-2: channels 2·D in heads of {SSD_HEAD}, N {SSD_STATES}, one group",
        "operator",
        _ssd_inputs,
        (
            ours(_ssd_ours),
            Side("ssd_minimal", _ssd_minimal, "mamba-ssm"),
            Side(
                "transformers",
                _ssd_transformers,
                "transformers",
                note="its chunked scan, the same chunk",
            ),
        ),
        _ssd_work,
    ),
    Case(
        "mlstm",
        f"{HEADS} heads, keys and values 2·D",
        "operator",
        _mlstm_inputs,
        (
            ours(_mlstm_ours),
            Side("mlstm-kernels", _mlstm_kernels, "mlstm-kernels", note="chunkwise, native"),
            Side("xlstm", _mlstm_parallel, "xlstm", note="parallel form, quadratic in L"),
        ),
        _mlstm_work,
    ),
    Case(
        "retention",
        f"linear attention, a decay per head: D in {2 * HEADS} heads",
        "operator",
        _attention_inputs,
        (ours(_retention_ours), SDPA),
        _attention_work(lambda shape: 2 * HEADS * (CHUNK / 2 + 2)),
    ),
    Case(
        "gla",
        f"linear attention, a decay per channel: D in {2 * HEADS} heads",
        "operator",
        _attention_inputs,
        (ours(_gla_ours), SDPA),
        _attention_work(lambda shape: 2 * shape.width * math.log2(CHUNK)),
    ),
)
