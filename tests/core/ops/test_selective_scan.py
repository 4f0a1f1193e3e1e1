"""Selective scan: every kernel against the float64 recurrence, all gradients, special values,
errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core import _cpu
from longseq.core.errors import ArgumentError
from longseq.core.ops.selective_scan import selective_scan, selective_scan_reference

# Relative to the largest value of each tensor.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
SIZES = {"batch": 2, "length": 40, "width": 5, "states": 3}


@dataclass(frozen=True)
class Case:
    """Sizes; which optional arguments are there; how the activations lie in memory; and their
    magnitudes."""

    length: int
    states: int
    width: int
    groups: int = 1
    # of "D", "z", "b" (bias), "s" (softplus), "i" (initial state), "r" (resets), "c" (complex)
    given: str = ""
    layout: str = "dense"
    realistic: bool = False
    batch: int = 2


# Not the product of all choices: each appears with several others.
CASES = [
    Case(1, 1, 1),
    Case(1, 16, 17, 1, "Dzbsi", "transposed"),
    Case(2, 4, 3, 3, "zs", "sliced"),
    Case(3, 64, 5, 1, "Db", "expanded"),
    Case(7, 16, 34, 2, "Dzbsir", "sliced"),
    Case(7, 5, 1, 1, "sir", "transposed", batch=3),
    Case(31, 2, 19, 1, "zic"),
    Case(64, 1, 33, 3, "bsr", "expanded", realistic=True),
    Case(64, 64, 17, 1, "Dzs", "transposed", realistic=True),
    Case(65, 3, 6, 2, "Dzbsirc", "sliced"),
    Case(1000, 4, 9, 3, "Dzbsi", "sliced"),
    Case(1000, 16, 3, 1, "Dzbs", "transposed", realistic=True),
    Case(1030, 4, 3, 1, "Dsic", realistic=True),
    Case(4097, 16, 7, 1, "Dzbsi", "transposed", realistic=True, batch=1),
    Case(4097, 1, 3, 3, "zs", "dense"),
    Case(4097, 64, 2, 1, "ir", "sliced", realistic=True, batch=1),
]


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.select_isa(request.param)
    yield request.param
    _cpu.select_isa(before)


def lay(tensor: Tensor, layout: str) -> Tensor:
    """The tensor's values (for "expanded" those of its first row) with other strides."""
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        wide = torch.full(
            (*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), torch.nan, dtype=tensor.dtype
        )
        wide[..., 1 : 1 + tensor.shape[-1]] = tensor
        return wide[..., 1 : 1 + tensor.shape[-1]]
    return tensor[:1].expand_as(tensor) if layout == "expanded" else tensor


def make(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(case.length + 100 * case.states)
    real = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype

    def normal(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(kind)

    complex_ = "c" in case.given
    shape = (case.batch, case.length, case.width)
    maps = (case.batch, case.length, case.groups, case.states)
    if case.groups == 1:
        maps = (case.batch, case.length, case.states)
    delta = normal(*shape)
    if case.realistic:
        # 0.001 … 0.1
        steps = torch.exp(torch.rand(shape, generator=g, dtype=torch.float64) * 4.6 - 6.9)
        delta = (torch.log(torch.expm1(steps)) if "s" in case.given else steps).to(dtype)
    elif "s" not in case.given:
        delta = delta.abs()
    decay = -torch.arange(1, case.states + 1).expand(case.width, -1).to(real).clone()
    if not case.realistic:
        decay = -normal(case.width, case.states, kind=real).exp() * 0.3
    wide = (lambda t: torch.complex(t, normal(*t.shape, kind=real))) if complex_ else (lambda t: t)
    tensors = {
        "u": normal(*shape),
        "delta": delta,
        "A": wide(decay),
        "B": wide(normal(*maps, kind=real if complex_ else dtype)),
        "C": wide(normal(*maps, kind=real if complex_ else dtype)),
    }
    for name in ("u", "delta", "B", "C"):
        tensors[name] = lay(tensors[name], case.layout)
    if "D" in case.given:
        tensors["D"] = normal(case.width, kind=real)
    if "z" in case.given:
        tensors["z"] = lay(normal(*shape), case.layout)
    if "b" in case.given:
        tensors["delta_bias"] = 0.1 * normal(case.width, kind=real)
    if "i" in case.given:
        tensors["initial_state"] = wide(normal(case.batch, case.width, case.states, kind=real))
    if "r" in case.given:
        tensors["resets"] = torch.rand(case.batch, case.length, generator=g) < 0.1
    return tensors


def results(
    function: object, tensors: dict[str, Tensor], softplus: bool, wide: bool = False
) -> dict[str, Tensor]:
    """Output, final state, and all gradients of a weighted sum of both."""

    def convert(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return tensor
        if wide:
            tensor = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
        return tensor.detach().requires_grad_()

    leaves = {name: convert(tensor) for name, tensor in tensors.items()}
    y, state = function(**leaves, delta_softplus=softplus)  # type: ignore[operator]
    g = torch.Generator().manual_seed(0)
    # The weights are the same numbers in every dtype, because the gradient of y has y's.
    w_y = torch.randn(y.shape, generator=g).bfloat16().to(y.dtype)
    w_s = torch.randn(state.shape, generator=g).to(state.real.dtype)
    parts = torch.view_as_real(state).sum(-1) if state.is_complex() else state
    names = [name for name, leaf in leaves.items() if leaf.requires_grad]
    grads = torch.autograd.grad([y, parts], [leaves[n] for n in names], [w_y, w_s])
    return {"y": y.detach(), "state": state.detach(), **{"d" + n: g for n, g in zip(names, grads)}}


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert actual.keys() == expected.keys()
    return {
        name: ((actual[name] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        for name, value in expected.items()
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_against_the_recurrence_in_float64(case: Case) -> None:
    tensors = make(case)
    expected = results(selective_scan_reference, tensors, "s" in case.given, wide=True)
    before = _cpu.isa()
    for isa in _cpu.available_isas():
        _cpu.select_isa(isa)
        for wide, dtype in ((False, torch.float32), (True, torch.float64)):
            found = errors(results(selective_scan, tensors, "s" in case.given, wide), expected)
            worst = max(found, key=lambda name: found[name])
            assert found[worst] <= TOLERANCE[dtype], (isa, dtype, worst, found[worst])
    _cpu.select_isa(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", [CASES[4], CASES[8], CASES[9]], ids=str)
def test_half_precision_activations_cost_one_rounding(case: Case, dtype: torch.dtype) -> None:
    tensors = make(case, dtype)
    actual = results(selective_scan, tensors, "s" in case.given)
    expected = results(selective_scan_reference, tensors, "s" in case.given, wide=True)
    assert actual["y"].dtype == actual["du"].dtype == dtype
    assert actual["state"].real.dtype == torch.float32
    for name, value in expected.items():
        rounding = torch.finfo(actual[name].dtype).eps / 2
        allowed = rounding * value.abs() + 1e-5 * value.abs().max()
        assert ((actual[name] - value).abs() <= allowed).all(), name


@pytest.mark.parametrize("name", ["u", "A", "delta", "B", "initial_state", "D"])
def test_arguments_of_different_dtypes(name: str) -> None:
    tensors = make(Case(40, 3, 5, 1, "Dzbsi"))
    expected = results(selective_scan_reference, tensors, True, wide=True)
    for other in (torch.float64, torch.bfloat16):
        mixed = {**tensors, name: tensors[name].bfloat16().to(other)}
        want = results(selective_scan_reference, mixed, True, wide=True)
        actual = results(selective_scan, mixed, True)
        assert actual["d" + name].dtype == other
        for key, error in errors(actual, want).items():
            assert error <= (
                torch.finfo(torch.bfloat16).eps if actual[key].dtype == torch.bfloat16 else 1e-5
            ), key
    assert max(errors(results(selective_scan, tensors, True), expected).values()) <= 1e-5


def test_extreme_step_sizes_and_decays(isa: str) -> None:
    tensors = make(Case(50, 4, 7, 1, "Dzs"))
    channels = torch.tensor([-200.0, -88.0, -20.0, 15.0, 25.0, 60.0, 300.0])
    tensors["delta"] = channels.expand(2, 50, 7).contiguous()
    tensors["A"] = torch.tensor([-1e4, -1.0, 0.0, 1e-3]).expand(7, 4).contiguous()
    tensors["A"][5:, 3] = 0.0  # growth of e^(0.06 · 50) and more is another test's matter
    for dtype in (torch.float32, torch.float64):
        expected = results(selective_scan_reference, tensors, True, wide=True)
        found = results(selective_scan, tensors, True, wide=dtype == torch.float64)
        assert all(value.isfinite().all() for value in found.values())
        assert max(errors(found, expected).values()) <= TOLERANCE[dtype]
        state = found["state"]
        assert (state[:, 0] == 0).all() or state[
            :, 0
        ].abs().max() < 1e-35  # softplus(-200) is nothing
    tensors["delta"] = torch.full((2, 50, 7), 1e30)
    tensors["A"] = torch.full((7, 4), -1e5)
    y, state = selective_scan(
        tensors["u"] * 1e-30, tensors["delta"], tensors["A"], tensors["B"], tensors["C"]
    )
    assert y.isfinite().all() and state.isfinite().all()  # the decays are exactly zero


NAN_BITS = (0x7FC00000, 0x7FC00123, -0x3FFFF9)  # quiet NaNs with other payloads and signs


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, *NAN_BITS])
@pytest.mark.parametrize(
    "name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
)
def test_bad_values_reach_what_depends_on_them_and_nothing_else(
    isa: str, name: str, bad: float
) -> None:
    tensors = {key: value.contiguous() for key, value in make(Case(40, 3, 18, 1, "Dzbsi")).items()}
    if isinstance(bad, int):
        bad_value = torch.tensor(bad, dtype=torch.int32).view(torch.float32)
    else:
        bad_value = torch.tensor(bad)
    place = {1: (1,), 2: (1, 2), 3: (1, 20, 2)}[tensors[name].dim()]
    place = (1, 2, 1) if name == "initial_state" else place
    tensors[name][place] = bad_value
    actual = results(selective_scan, tensors, True)
    expected = results(selective_scan_reference, tensors, True)
    for key in ("y", "state"):
        assert (actual[key].isfinite() == expected[key].isfinite()).all(), key
    if bad_value.isnan():
        for key, value in expected.items():
            assert (actual[key].isfinite() == value.isfinite()).all(), key


def test_resets_equal_separate_runs_and_stop_nan() -> None:
    tensors = make(Case(70, 3, 18, 1, "Dzbs"))
    resets = torch.zeros(2, 70, dtype=torch.bool)
    resets[:, [0, 33, 64]] = True
    y, state = selective_scan(**tensors, resets=resets, delta_softplus=True)
    pieces = []
    for start, stop in ((0, 33), (33, 64), (64, 70)):
        part = {
            k: v[:, start:stop] if k in ("u", "delta", "B", "C", "z") else v
            for k, v in tensors.items()
        }
        pieces.append(selective_scan(**part, delta_softplus=True))
    assert torch.equal(y, torch.cat([piece[0] for piece in pieces], 1))
    assert torch.equal(state, pieces[-1][1])
    for complex_ in ("", "c"):
        tensors = {**make(Case(70, 3, 18, 1, "s" + complex_)), "resets": resets}
        tensors["B"][:, 40] = torch.nan
        found = results(selective_scan, tensors, True)
        for key in ("y", "du", "ddelta", "dB", "dC"):
            assert found[key][:, :33].isfinite().all() and found[key][:, 64:].isfinite().all(), key
        assert not found["y"][:, 40:64].isfinite().any()


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 80),
    at=st.floats(0, 1),
    width=st.integers(1, 20),
    given=st.sampled_from(["s", "Dzbsi", "ir", "Dzsic"]),
)
def test_a_sequence_may_be_cut_anywhere(length: int, at: float, width: int, given: str) -> None:
    tensors = make(Case(length, 3, width, 1, given))
    cut = round(at * length)
    y, state = selective_scan(**tensors, delta_softplus=True)
    carried = tensors.pop("initial_state", None)
    outputs = []
    for part in (slice(0, cut), slice(cut, length)):
        if part.start == part.stop:
            continue
        piece = {k: v if k in ("A", "D", "delta_bias") else v[:, part] for k, v in tensors.items()}
        out, carried = selective_scan(**piece, initial_state=carried, delta_softplus=True)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 1), y, rtol=0, atol=1e-6 * y.abs().max().item())
    torch.testing.assert_close(carried, state, rtol=0, atol=1e-6 * state.abs().max().item() + 1e-30)


def test_memory_stays_within_four_times_the_inputs() -> None:
    program = """
import re, torch
from longseq.core.ops.selective_scan import selective_scan
def value(key):
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(key + r":\\s+(\\d+)", text)[1])
def run(length):
    shapes = [(1, length, 256)] * 3 + [(1, length, 16)] * 2
    u, delta, z, B, C = (torch.randn(s).requires_grad_() for s in shapes)
    A = -torch.rand(256, 16).requires_grad_()
    before = value("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    y, state = selective_scan(u, delta, A, B, C, None, z, delta_softplus=True)
    torch.autograd.backward([y, state], [y.detach(), state.detach()])
    inputs = sum(4 * t.numel() for t in (u, delta, z, B, C))
    return (value("VmHWM") - before) / inputs
run(64)
print(run(4096))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 4.0


WRONG = {
    "u": [
        torch.zeros(2, 40),
        torch.zeros(2, 0, 5),
        torch.zeros(2, 40, 5, dtype=torch.int64),
        [1.0],
        torch.zeros(2, 40, 5, dtype=torch.complex64),
        torch.zeros(2, 40, 5, dtype=torch.float8_e4m3fn),
    ],
    "delta": [torch.zeros(2, 40, 4), torch.zeros(2, 40, 5, dtype=torch.bool), 0.5],
    "A": [torch.zeros(5), torch.zeros(4, 3), torch.zeros(5, 3, device="meta"), "A"],
    "B": [
        torch.zeros(2, 40, 4),
        torch.zeros(2, 39, 3),
        torch.zeros(2, 40, 2, 3),
        torch.zeros(2, 40, 0, 3),
        torch.zeros(2, 40, 3, dtype=torch.complex64),
        torch.zeros(5, 3),
        None,
    ],
    "C": [torch.zeros(2, 40, 1, 4), torch.zeros(2, 40, 5, 3), torch.zeros(2, 40, 3, device="meta")],
    "D": [torch.zeros(4), torch.zeros(5, 1), torch.zeros(5, dtype=torch.int32), 1.0],
    "z": [torch.zeros(2, 40, 1), torch.zeros(40, 5)],
    "delta_bias": [torch.zeros(6), torch.zeros(5, device="meta")],
    "initial_state": [torch.zeros(2, 3, 5), torch.zeros(2, 5, 3, dtype=torch.complex64)],
    "resets": [
        torch.zeros(2, 39, dtype=torch.bool),
        torch.zeros(2, 40),
        [True],
        torch.zeros(2, 40, dtype=torch.bool, device="meta"),
    ],
}


@pytest.mark.parametrize(
    ("name", "which"), [(n, i) for n, values in WRONG.items() for i in range(len(values))]
)
def test_a_wrong_argument_is_named(name: str, which: int) -> None:
    tensors = make(Case(40, 3, 5, 1, "Dzbsir"))
    with pytest.raises(ArgumentError, match=rf"^selective_scan: (\w+ is complex, so )?{name} "):
        selective_scan(**{**tensors, name: WRONG[name][which]})
    if name == "u" and which == 2:
        with pytest.raises(ArgumentError, match=r"must be floating-point .*got torch\.int64"):
            selective_scan(**{**tensors, name: WRONG[name][which]})
