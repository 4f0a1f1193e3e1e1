"""What operators refuse by name: the kernels read what shapes say is there, so that a shape that
lies must never reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError, BackendError, ConfigError
from longseq.core.ops.backends import BACKENDS
from longseq.core.ops.block_linear import block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.depthwise_conv2d import depthwise_conv2d
from longseq.core.ops.dplr import dplr
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.gated_norm import gated_layer_norm, gated_rms_norm
from longseq.core.ops.gelu import biased_gelu
from longseq.core.ops.gelu_mlp import gelu_mlp
from longseq.core.ops.glu import biased_glu
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.rms_norm import add_rms_norm, rms_norm
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.slstm import SLSTMState, slstm
from longseq.core.ops.ssd import ssd
from longseq.core.ops.state_update import state_update
from longseq.core.ops.two_way_recurrence import two_way_recurrence

B, L, D, H, N = 2, 300, 8, 2, 4


def new(*shape: int) -> Tensor:
    return torch.linspace(-1, -0.1, torch.Size(shape).numel()).view(shape)


HEADS, GATES, ROWS = (B, L, H, N), (B, L, H), (B, L, D)
STATE = (B, H, N, N)
CALLS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "delta_rule": (
        delta_rule,
        {"q": HEADS, "k": HEADS, "v": HEADS, "beta": GATES, "initial_state": STATE},
    ),
    "dplr": (dplr, dict.fromkeys(["q", "k", "v", "a", "b", "log_decay"], HEADS)),
    "linear_attention": (linear_attention, {"q": HEADS, "k": HEADS, "v": HEADS}),
    "mlstm": (mlstm, {"q": HEADS, "k": HEADS, "v": HEADS, "i": GATES, "f": GATES}),
    "ssd": (ssd, {"x": HEADS, "dt": GATES, "A": (H,), "B": HEADS, "C": HEADS, "D": (H,)}),
    "selective_scan": (
        selective_scan,
        {"u": ROWS, "delta": ROWS, "A": (D, N), "B": (B, L, N), "C": (B, L, N), "D": (D,)},
    ),
    "causal_conv1d": (causal_conv1d, {"x": ROWS, "weight": (D, 4), "bias": (D,)}),
    "fft_conv": (fft_conv, {"u": ROWS, "k": (D, L), "skip": (D,)}),
    "linear_scan": (linear_scan, {"a": ROWS, "b": ROWS, "initial_state": (B, D)}),
    "biased_glu": (biased_glu, {"x": ROWS, "bias": (D,)}),
    "biased_gelu": (biased_gelu, {"x": ROWS, "bias": (D,)}),
    "two_way_recurrence": (two_way_recurrence, {"mixed": (B, L, 3 * D)}),
    "gelu_mlp": (
        gelu_mlp,
        {"x": ROWS, "weight1": (7, D), "bias1": (7,), "weight2": (5, 7), "bias2": (5,)},
    ),
    "depthwise_conv2d": (
        depthwise_conv2d,
        {"x": (B, 9, 5, D), "weight": (D, 1, 3, 3), "bias": (D,)},
    ),
    "slstm": (slstm, {"gates": (B, L, 4, H, N), "recurrent": (H, 4 * N, N)}),
    "gated_rms_norm": (gated_rms_norm, {"y": ROWS, "z": ROWS, "weight": (D,)}),
    "gated_layer_norm": (
        gated_layer_norm,
        {"y": ROWS, "z": ROWS, "weight": (D,), "u": ROWS, "skip": (D,)},
    ),
    "rms_norm": (rms_norm, {"x": ROWS, "weight": (D,)}),
    "add_rms_norm": (add_rms_norm, {"x": ROWS, "residual": ROWS, "weight": (D,)}),
    "state_update": (
        state_update,
        {
            "state": (B, D, N),
            "x": (B, D),
            "dt": (B, D),
            "A": (D, N),
            "B": (B, N),
            "C": (B, N),
            "D": (D,),
            "z": (B, D),
        },
    ),
}
ARGUMENTS = [(name, one) for name, (_, shapes) in CALLS.items() for one in shapes]


def call(name: str, **changed: object) -> Any:
    operator, shapes = CALLS[name]
    return operator(**{one: new(*shape) for one, shape in shapes.items()} | changed)


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_below_are_right_as_they_stand(name: str) -> None:
    call(name)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_no_tensor_of_numbers_is_refused(name: str, argument: str) -> None:
    given = new(*CALLS[name][1][argument])
    for bad in (given.tolist(), "a", given.long()):
        with pytest.raises(ArgumentError, match=rf"^{name}: {argument}"):
            call(name, **{argument: bad})


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_another_shape_is_refused_or_is_a_call_of_its_own(name: str, argument: str) -> None:
    given = new(*CALLS[name][1][argument])
    for bad in (given[..., :0], given[..., None], given[..., :-1], given[:1]):
        # Some are right: a shorter kernel, a decay for all rows. None is an error of torch's.
        try:
            call(name, **{argument: bad})
        except ArgumentError:
            continue
        assert name in (
            "fft_conv",
            "linear_scan",
            "causal_conv1d",
            "biased_glu",
            "biased_gelu",
            "gelu_mlp",
            "depthwise_conv2d",
            "state_update",
        ) or (
            (name, argument)
            in {
                ("slstm", "gates"),
                ("ssd", "x"),
                ("rms_norm", "x"),
                ("two_way_recurrence", "mixed"),
            }
            or argument == "v"
        )


def test_weights_of_another_dtype_than_their_input() -> None:
    x, weight = torch.randn(2, 8), torch.randn(2, 4, 4)
    with pytest.raises(ArgumentError, match=r"weight 1 must be torch\.float32 as x"):
        block_linear(x, weight, weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert block_linear(x.bfloat16(), weight)[0].dtype == torch.bfloat16


def test_wrong_shapes_that_the_kernels_would_have_read_behind() -> None:
    rows, weight = new(B, L, D), new(2, 4, 4)
    with pytest.raises(ArgumentError, match="gated_rms_norm: z must have shape"):
        gated_rms_norm(rows.expand(B, L, D), rows[:1], new(D))
    for bad in (weight[:1], torch.cat([weight, weight]), weight[..., :3], new(8, 8)):
        with pytest.raises(ArgumentError, match=r"^block_linear: "):
            block_linear(rows, bad)
    with pytest.raises(ArgumentError, match="block_linear: weight 1 must have shape"):
        block_linear(rows, weight, new(4, 2, 2))
    with pytest.raises(ArgumentError, match="at least one weight"):
        block_linear(rows)
    gates, recurrent = new(B, L, 4, H, N), new(H, 4 * N, N)
    state = SLSTMState(*(new(B, H, N) for _ in range(4)))
    with pytest.raises(ArgumentError, match="slstm: recurrent must have shape"):
        slstm(gates, recurrent[:1])
    with pytest.raises(ArgumentError, match="slstm: n of initial_state must have shape"):
        slstm(gates, recurrent, state._replace(n=new(1, H, N)))
    with pytest.raises(ArgumentError, match="slstm: initial_state must be an SLSTMState"):
        slstm(gates, recurrent, (state.h, state.c))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *[(name, "chunk_size") for name in ("delta_rule", "dplr", "linear_attention", "mlstm")],
        ("ssd", "chunk_size"),
        ("gated_rms_norm", "groups"),
        ("gated_layer_norm", "groups"),
    ],
)
@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "a", None])
def test_counts(name: str, option: str, bad: object) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: {option} must be"):
        call(name, **{option: bad})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *[(name, "scale") for name in ("delta_rule", "dplr", "linear_attention")],
        *[
            (name, "eps")
            for name in ("mlstm", "gated_rms_norm", "gated_layer_norm", "rms_norm", "add_rms_norm")
        ],
    ],
)
@pytest.mark.parametrize("bad", [True, "a", torch.tensor(2.0)])
def test_numbers(name: str, option: str, bad: object) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: {option} must be a number"):
        call(name, **{option: bad})


@pytest.mark.parametrize("name", ["delta_rule", "selective_scan", "causal_conv1d", "dplr"])
def test_backends_are_listed_as_the_operator_has_them(name: str) -> None:
    with pytest.raises(ConfigError) as unknown:
        call(name, backend="zzz")
    listed = str(unknown.value).split("known: ")[1].split(", ")
    assert {"auto", "cpu", "reference"} <= set(listed) < set(BACKENDS)
    for absent in set(BACKENDS) - set(listed):
        with pytest.raises(BackendError, match="no such backend, but auto, reference, cpu"):
            call(name, backend=absent)
