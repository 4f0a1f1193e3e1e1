"""Causal convolution: the kernels against torch in float64, and what it carries, resets and
refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d, pad, silu

from longseq.core import _cpu
from longseq.core.errors import ArgumentError
from longseq.core.ops.causal_conv1d import MAX_WIDTH, causal_conv1d

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.select_isa(request.param)
    yield request.param
    _cpu.select_isa(before)


def make(
    length: int, width: int, channels: int, given: str = "bi", batch: int = 2
) -> dict[str, Tensor]:
    """The arguments; ``given`` has "b" for a bias, "i" for an initial state, "r" for resets."""
    g = torch.Generator().manual_seed(length * width)
    tensors = {
        "x": torch.randn(batch, length, channels, generator=g),
        "weight": torch.randn(channels, width, generator=g),
    }
    if "b" in given:
        tensors["bias"] = torch.randn(channels, generator=g)
    if "i" in given:
        tensors["initial_state"] = torch.randn(batch, width - 1, channels, generator=g)
    if "r" in given:
        tensors["resets"] = torch.rand(batch, length, generator=g) < 0.2
    return tensors


def oracle(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    activation: str | None = None,
) -> tuple[Tensor, Tensor]:
    """torch's own convolution, segment by segment."""
    past = weight.shape[1] - 1
    rows, states = [], []
    for row in range(x.shape[0]):
        cuts = [] if resets is None else resets[row].nonzero().flatten().tolist()
        bounds = sorted({0, *cuts, x.shape[1]})
        zeros = x.new_zeros(past, x.shape[2])
        before = zeros if initial_state is None or 0 in cuts else initial_state[row]
        pieces = []
        for start, stop in pairwise(bounds):
            seen = torch.cat([before, x[row, start:stop]]).T
            pieces.append(
                conv1d(seen.unsqueeze(0), weight.unsqueeze(1), bias, groups=x.shape[2])[0].T
            )
            state = pad(seen, (past, 0))[:, seen.shape[1] :].T
            before = zeros
        rows.append(torch.cat(pieces))
        states.append(state)
    y = torch.stack(rows)
    return silu(y) if activation else y, torch.stack(states)


def results(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: dict[str, Tensor],
    activation: str | None,
    from_state: float = 1.0,
) -> dict[str, Tensor]:
    """Output, state, and the gradients of a weighted sum of both."""
    leaves = {
        k: t.detach() if t.dtype == torch.bool else t.detach().requires_grad_()
        for k, t in tensors.items()
    }
    y, state = function(**leaves, activation=activation)
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=g).bfloat16().to(t.dtype) for t in (y, state)]
    weights[1] *= from_state
    grads = torch.autograd.grad(
        [y, state], [t for t in leaves.values() if t.requires_grad], weights
    )
    names = [k for k, t in leaves.items() if t.requires_grad]
    return {"y": y.detach(), "state": state.detach(), **dict(zip(names, grads))}


def widen(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t if t.dtype == torch.bool else t.double() for k, t in tensors.items()}


def worst(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return max(
        ((actual[k] - v).abs().max() / v.abs().max().clamp(min=1e-30)).item()
        for k, v in expected.items()
        if v.numel()
    )


@pytest.mark.parametrize(
    ("length", "width", "channels", "given", "activation"),
    [
        (1, 1, 1, "", None),
        (1, 4, 17, "bi", "silu"),
        (2, 4, 33, "r", "silu"),
        (3, 5, 3, "bir", None),
        (7, 32, 5, "bir", "silu"),
        (31, 3, 64, "b", "silu"),
        (32, 32, 7, "ir", "silu"),
        (33, 2, 65, "bi", None),
        (64, 4, 16, "br", "silu"),
        (1000, 4, 9, "bir", "silu"),
        (1000, MAX_WIDTH, 3, "bir", None),
        (4097, 4, 5, "bir", "silu"),
        (4097, 7, 3, "b", None),
    ],
)
def test_every_kernel_against_torch_in_float64(
    isa: str, length: int, width: int, channels: int, given: str, activation: str | None
) -> None:
    tensors = make(length, width, channels, given)
    expected = results(oracle, widen(tensors), activation)
    assert worst(results(causal_conv1d, tensors, activation), expected) <= TOLERANCE[torch.float32]
    assert (
        worst(results(causal_conv1d, widen(tensors), activation), expected)
        <= TOLERANCE[torch.float64]
    )
    slow = results(lambda **k: causal_conv1d(**k, backend="reference"), widen(tensors), activation)
    assert worst(slow, expected) <= TOLERANCE[torch.float64]


def test_strides(isa: str) -> None:
    plain = make(50, 4, 9)
    expected = results(causal_conv1d, plain, "silu")
    turned = {k: t.transpose(0, -1).contiguous().transpose(0, -1) for k, t in plain.items()}
    wide = torch.full((2, 50, 20), torch.nan)
    wide[..., 3:12] = plain["x"]
    for tensors in (turned, {**plain, "x": wide[..., 3:12]}):
        actual = results(causal_conv1d, tensors, "silu")
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
    one = {**plain, "x": plain["x"][:1, :, :1].expand(2, 50, 9)}
    same = {**plain, "x": one["x"].contiguous()}
    assert torch.equal(causal_conv1d(**one)[0], causal_conv1d(**same)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["same", "float32"])
def test_half_precision_costs_one_rounding(dtype: torch.dtype, weights: str) -> None:
    tensors = {
        k: t if t.dtype == torch.bool else t.to(dtype) for k, t in make(100, 4, 9, "bir").items()
    }
    if weights == "float32":
        tensors |= {k: tensors[k].float() for k in ("weight", "bias")}
    # Not through the state: autograd adds its gradient to x's in half precision, a second rounding.
    actual = results(causal_conv1d, tensors, "silu", from_state=0.0)
    expected = results(oracle, widen(tensors), "silu", from_state=0.0)
    assert actual["y"].dtype == actual["state"].dtype == dtype
    for name, value in expected.items():
        rounding = torch.finfo(actual[name].dtype).eps / 2
        assert (
            (actual[name] - value).abs() <= rounding * value.abs() + 1e-5 * value.abs().max()
        ).all(), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_bad_values_reach_what_depends_on_them_and_nothing_else(
    isa: str, name: str, bad: float
) -> None:
    tensors = make(40, 4, 18, "bi")
    tensors["resets"] = torch.zeros(2, 40, dtype=torch.bool)
    tensors["resets"][:, 22] = True
    # In the weight the newest tap: what another tap makes of the zeros before a segment is nobody's
    # business.
    place = {"x": (1, 20, 7), "weight": (7, 3), "bias": (7,), "initial_state": (1, 2, 7)}[name]
    tensors[name][place] = bad
    actual = results(causal_conv1d, tensors, "silu")
    expected = results(oracle, tensors, "silu")
    for key in ("y", "state", "x", "initial_state"):
        assert (actual[key].isfinite() == expected[key].isfinite()).all(), key
    assert actual["y"][1, 22:, 7].isfinite().all() or name in ("weight", "bias")


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 90),
    st.floats(0, 1),
    st.integers(1, MAX_WIDTH),
    st.sampled_from(["i", "bir", "b"]),
)
def test_a_sequence_may_be_cut_anywhere(length: int, at: float, width: int, given: str) -> None:
    tensors = make(length, width, 5, given)
    y, last = causal_conv1d(**tensors, activation="silu")
    cut, state, parts = round(at * length), tensors.get("initial_state"), []
    for part in (slice(0, cut), slice(cut, length)):
        if part.start < part.stop:
            piece = {k: v[:, part] if k in ("x", "resets") else v for k, v in tensors.items()}
            out, state = causal_conv1d(**{**piece, "initial_state": state}, activation="silu")
            parts.append(out)
    assert torch.equal(torch.cat(parts, 1), y) and torch.equal(state, last)


WRONG = {
    "x": [
        torch.zeros(2, 40),
        torch.zeros(2, 0, 5),
        torch.zeros(2, 40, 5, dtype=torch.int64),
        None,
        torch.zeros(2, 40, 5, dtype=torch.complex64),
    ],
    "weight": [
        torch.zeros(5),
        torch.zeros(4, 4),
        torch.zeros(5, 0),
        torch.zeros(5, 33),
        torch.zeros(5, 4, dtype=torch.int8),
        torch.zeros(5, 4, device="meta"),
    ],
    "bias": [torch.zeros(4), torch.zeros(5, dtype=torch.complex64), 0.0],
    "initial_state": [
        torch.zeros(2, 5, 3),
        torch.zeros(2, 4, 5),
        torch.zeros(2, 3, 5, device="meta"),
    ],
    "resets": [torch.zeros(2, 39, dtype=torch.bool), torch.zeros(2, 40), True],
    "activation": ["relu"],
}


@pytest.mark.parametrize(
    ("name", "which"), [(n, i) for n, values in WRONG.items() for i in range(len(values))]
)
def test_a_wrong_argument_is_named(name: str, which: int) -> None:
    with pytest.raises(ArgumentError, match=rf"^causal_conv1d: {name} must .*got "):
        causal_conv1d(**{**make(40, 4, 5, "bir"), name: WRONG[name][which]})  # type: ignore[arg-type]
