"""Recurrences in the speed benchmarks: selective scan, linear scans, sLSTM; their peers and their
bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from longseq.bench.case_tools import Tensors, draws, make_program, moved_bytes, ours, turned
from longseq.bench.measure import Case, Mode, Program, Shape, Side, Work
from longseq.bench.peers import load
from longseq.core.compat.mamba_ssm import selective_state_update
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.slstm import slstm

STATES = 16  # of Mamba
HEADS = 4  # of sLSTM
SEQUENCE: tuple[Mode, ...] = ("forward", "training")


def _scan_inputs(shape: Shape) -> Tensors:
    draw, width = draws(), 2 * shape.width
    size = (shape.batch, shape.length)
    tensors = {
        "u": draw(*size, width),
        "delta": 0.1 * draw(*size, width).sigmoid(),
        "B": draw(*size, STATES),
        "C": draw(*size, STATES),
    }
    lowered = {name: tensor.to(shape.torch_dtype) for name, tensor in tensors.items()}
    return {**lowered, "A": -torch.arange(1.0, STATES + 1).repeat(width, 1), "D": torch.ones(width)}


def _scan_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    if mode == "step":
        return _step(selective_state_update, tensors, shape)
    return make_program(
        lambda u, delta, A, B, C, D: selective_scan(u, delta, A, B, C, D)[0], tensors
    )


def _step(update: Callable[..., Tensor], tensors: Tensors, shape: Shape) -> Program:
    """Returns the update of one position, on a state that is carried in place."""
    state = torch.zeros(shape.batch, tensors["u"].shape[2], STATES)
    u, delta, b, c = (tensors[name][:, 0].contiguous() for name in ("u", "delta", "B", "C"))
    return Program(lambda: update(state, u, delta, tensors["A"], b, c, tensors["D"]), [u])


def _scan_mambapy(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    scan = load("mambapy.mamba").MambaBlock.selective_scan  # uses nothing of its module
    return make_program(lambda u, delta, A, B, C, D: scan(None, u, delta, A, B, C, D), tensors)


def _scan_reference(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    scan = load("mamba-ssm:selective_scan").selective_scan_ref
    tensors = turned(tensors, "u", "delta", "B", "C")
    return make_program(
        lambda u, delta, A, B, C, D: scan(u, delta, A, B, C, D).transpose(1, 2),
        tensors,
        transposed=True,
    )


def _scan_transformers(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    module = load("transformers.models.mamba.modeling_mamba")
    return _step(module.mamba_selective_state_update, tensors, shape)


def scan_work(shape: Shape, mode: Mode) -> Work:
    """Returns the work of the selective scan of a Mamba layer."""
    tokens, width = shape.batch * (1 if mode == "step" else shape.length), 2 * shape.width
    elements = tokens * width * STATES
    # Multiply-adds of one state and position: 6 for the exponential (range reduction and
    # polynomial), 3 for
    # decay, input and output: 9. The backward runs the forward again and differentiates all of it:
    # 19.
    fma = elements * (28 if mode == "training" else 9)
    inputs, outputs = tokens * (2 * width + 2 * STATES), tokens * width
    moved = moved_bytes(shape, mode, inputs, outputs) + (8 * elements if mode == "step" else 0)
    return Work(fma, elements * (2 if mode == "training" else 1), moved)


def _recurrence_inputs(shape: Shape) -> Tensors:
    draw, size = draws(), (shape.batch, shape.length, 2 * shape.width)
    return {
        "b": draw(*size).to(shape.torch_dtype),
        "a": draw(*size).sigmoid().to(shape.torch_dtype),
    }


def _complex_inputs(shape: Shape) -> Tensors:
    draw, size = draws(), (shape.batch, shape.length, shape.width // 2)
    decay = torch.polar(draw(*size).sigmoid(), draw(*size))
    return {"b": torch.complex(draw(*size), draw(*size)), "a": decay}


def _recurrence_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda a, b: linear_scan(a, b)[0], tensors)


def _recurrence_mambapy(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    scan = load("mambapy.pscan").pscan
    return make_program(lambda a, b: scan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1), tensors)


def _recurrence_s5(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    scan, join = load("s5.jax_compat").associative_scan, load("s5.s5_model").binary_operator
    return make_program(lambda a, b: scan(join, (a, b), axis=1)[1], tensors)


def _recurrence_work(
    numbers: Callable[[Shape], int], products: int
) -> Callable[[Shape, Mode], Work]:
    """``products``: multiply-adds of one channel and position; the backward has two such
    products."""

    def work(shape: Shape, mode: Mode) -> Work:
        values = shape.batch * shape.length * numbers(shape)
        real = 2 if products > 1 else 1
        fma = values * products * (3 if mode == "training" else 1)
        return Work(fma, 0, moved_bytes(shape, mode, 2 * real * values, real * values))

    return work


def _slstm_inputs(shape: Shape) -> Tensors:
    draw, width = draws(), shape.width // HEADS
    gates = draw(shape.batch, shape.length, 4, HEADS, width)
    recurrent = draw(HEADS, 4 * width, width) / math.sqrt(width)
    return {"gates": gates.to(shape.torch_dtype), "recurrent": recurrent.to(shape.torch_dtype)}


def _slstm_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda gates, recurrent: slstm(gates, recurrent)[0].flatten(2), tensors)


def _slstm_vanilla(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    module = load("xlstm.blocks.slstm.src.vanilla")
    pointwise = module.slstm_pointwise_function_registry["slstm"]
    gates = tensors["gates"].transpose(0, 1).flatten(2)  # (L, B, 4·D)
    start = torch.zeros(4, shape.batch, shape.width, dtype=shape.torch_dtype)
    bias = torch.zeros(4 * shape.width, dtype=shape.torch_dtype)

    def call(gates: Tensor, recurrent: Tensor) -> Tensor:
        states: Tensor = module.slstm_forward(gates, start, recurrent, bias, pointwise)[0]
        return states[0, 1:].transpose(0, 1)

    program = make_program(call, {"gates": gates, "recurrent": tensors["recurrent"]})
    program.canonical = lambda gradient: gradient.transpose(0, 1).reshape(tensors["gates"].shape)
    return program


def slstm_work(shape: Shape, mode: Mode) -> Work:
    """Returns the work of the recurrence: four matrices per head, six exponentials per unit."""
    tokens = shape.batch * (1 if mode == "step" else shape.length)
    times = 3 if mode == "training" else 1
    units = tokens * shape.width
    fma = times * 4 * units * (shape.width / HEADS)
    return Work(fma, 6 * units, moved_bytes(shape, mode, 4 * units, units))


SCANS: tuple[Case, ...] = (
    Case(
        "selective_scan",
        f"Mamba: channels 2·D, N {STATES}, B and C (B, L, N), D",
        "operator",
        _scan_inputs,
        (
            ours(_scan_ours),
            Side("mambapy", _scan_mambapy, "mambapy", note="its parallel scan", modes=SEQUENCE),
            Side(
                "mamba-ssm ref",
                _scan_reference,
                "mamba-ssm",
                note="selective_scan_ref",
                modes=SEQUENCE,
            ),
            Side(
                "transformers",
                _scan_transformers,
                "transformers",
                note="its cached step",
                modes=("step",),
            ),
        ),
        scan_work,
        modes=("forward", "training", "step"),
    ),
    Case(
        "linear_scan",
        "h = a·h + b: channels 2·D",
        "operator",
        _recurrence_inputs,
        (
            ours(_recurrence_ours),
            Side("mambapy", _recurrence_mambapy, "mambapy", note="its parallel scan"),
        ),
        _recurrence_work(lambda shape: 2 * shape.width, 1),
    ),
    Case(
        "linear_scan_complex",
        "h = a·h + b: complex channels D/2",
        "operator",
        _complex_inputs,
        (
            ours(_recurrence_ours),
            Side("s5-pytorch", _recurrence_s5, "s5-pytorch", note="its associative scan"),
        ),
        _recurrence_work(lambda shape: shape.width // 2, 4),
        dtypes=("float32",),
    ),
    Case(
        "slstm",
        f"the recurrence: D in {HEADS} heads",
        "operator",
        _slstm_inputs,
        (ours(_slstm_ours), Side("xlstm", _slstm_vanilla, "xlstm", note="vanilla")),
        slstm_work,
        longest=1 << 16,
    ),
)
