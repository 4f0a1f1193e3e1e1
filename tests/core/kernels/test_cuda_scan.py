"""Selective scan in CUDA C++, run by the emulator: against the float64 recurrence, all gradients,
races."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.errors import BackendError
from longseq.core.ops import cuda_calls
from longseq.core.ops.selective_scan import (
    cpu,
    cuda,
    selective_scan,
    selective_scan_reference,
    torch_op,
)
from longseq.core.ops.selective_scan.arguments import Arguments

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


@dataclass(frozen=True)
class Case:
    """Sizes; which optional arguments are there ("D", "z", "b", "i", "r"), softplus "s", complex
    "c"."""

    length: int
    width: int
    states: int
    groups: int = 1
    given: str = "Dzbsir"
    batch: int = 2
    multiprocessors: int = 1
    chunk: int = 0
    pieces: bool = False
    dtype: torch.dtype = torch.float32


CASES = {
    "narrow": Case(70, 5, 4),
    "wide": Case(75, 80, 4, groups=2),
    "split": Case(300, 5, 4, chunk=128),
    "split without resets": Case(300, 5, 4, given="Dzbsi", chunk=128),
    "pieces": Case(300, 5, 4, pieces=True, batch=1),
    "pieces, no state": Case(140, 5, 4, groups=5, given="zs", pieces=True),
    "pieces of a split": Case(600, 3, 2, chunk=256, pieces=True, batch=1),
    "complex, split": Case(140, 3, 2, given="Dzbsirc", chunk=128, batch=1),
    "odd, bare": Case(33, 20, 3, given="", batch=1),
    "bf16": Case(40, 6, 4, dtype=torch.bfloat16),
    "fp16": Case(40, 6, 4, given="zs", dtype=torch.float16),
    "many states": Case(37, 18, 40, given="si", batch=1),
    "one position": Case(1, 5, 4),
}


def make(case: Case) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(case.length)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    rows, kind = (case.batch, case.length, case.width), torch.float32
    decay = -torch.rand(case.width, case.states, generator=g)
    if "c" in case.given:
        decay, kind = torch.complex(decay, 3 * normal(case.width, case.states)), torch.complex64
    maps = (case.batch, case.length, case.groups, case.states)
    B, C = (
        torch.randn(*maps, generator=g, dtype=kind).to(
            case.dtype if kind == torch.float32 else kind
        )
        for _ in range(2)
    )
    delta = normal(*rows) - 2 if "s" in case.given else 0.2 * normal(*rows).abs()
    optional = {
        "D": normal(case.width),
        "z": normal(*rows, dtype=case.dtype),
        "b": 0.1 * normal(case.width),
        "i": torch.randn(case.batch, case.width, case.states, generator=g, dtype=kind),
        "r": torch.rand(case.batch, case.length, generator=g) < 0.05,
    }
    D, z, bias, initial, resets = (
        value if key in case.given else None for key, value in optional.items()
    )
    # Time-major memory, as a transposed activation has it.
    u = normal(case.length, case.batch, case.width, dtype=case.dtype).transpose(0, 1)
    return [u, delta.to(case.dtype), decay, B, C, D, z, bias, initial, resets]


def run(case: Case, tensors: list[Tensor | None], dy: Tensor, dfinal: Tensor) -> dict[str, Tensor]:
    """The bodies of the custom operators' CUDA kernels."""
    call = Arguments(*tensors, "s" in case.given)
    y, final, saved = torch_op._forward_cuda(call, torch_op._Saving(True))
    grads = torch_op._backward_cuda(torch_op._Incoming(dy, dfinal), call, torch_op._Saved(saved))
    named = {f"d{n}": g for n, g, t in zip(NAMES, grads, tensors) if t is not None}
    return {"y": y, "final": final, **named}


def expected(
    case: Case, tensors: list[Tensor | None], dy: Tensor, dfinal: Tensor
) -> dict[str, Tensor]:
    """The recurrence in float64, differentiated by autograd."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)

    leaves = {n: wide(t).requires_grad_() for n, t in zip(NAMES, tensors) if t is not None}
    y, final = selective_scan_reference(
        **leaves, delta_softplus="s" in case.given, resets=tensors[-1]
    )
    grads = torch.autograd.grad([y, final], list(leaves.values()), [wide(dy), wide(dfinal)])
    return {"y": y.detach(), "final": final.detach(), **{f"d{n}": g for n, g in zip(leaves, grads)}}


@pytest.fixture(autouse=True)
def cuda_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved has the CUDA kernels' shape though the tensors are on a CPU, and starts as
    NaN."""

    monkeypatch.setattr(
        cpu, "saved_size", lambda length, width, groups, A: cuda.saved_size(length, A)
    )
    real = torch.Tensor.new_empty

    def poisoned(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = real(self, *args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() or out.is_complex() else out

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_float64_recurrence(
    name: str, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    emulator.multiprocessors = case.multiprocessors
    if case.chunk:
        monkeypatch.setattr(
            cuda_calls,
            "split",
            lambda length, *rest: (case.chunk, (length + case.chunk - 1) // case.chunk),
        )
    if case.pieces:
        monkeypatch.setattr(cuda, "PARTIAL_BYTES", 0)
    tensors = make(case)
    g = torch.Generator().manual_seed(1)
    dy = torch.randn(case.batch, case.length, case.width, generator=g).to(case.dtype)
    dfinal = torch.randn(case.batch, case.width, case.states, generator=g, dtype=tensors[2].dtype)
    want = expected(case, tensors, dy, dfinal)
    runs = []
    for order in (0, 1, 2) if case.dtype == torch.float32 else (0,):
        emulator.order = order
        runs.append(run(case, tensors, dy, dfinal))
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(case.dtype, 1e-5)
    assert runs[0].keys() == want.keys()
    for key, exact in want.items():
        error = (runs[0][key].to(exact.dtype) - exact).abs().max() / exact.abs().max().clamp_min(
            1e-30
        )
        assert error < tolerance, (key, float(error))
        for again in runs[1:]:  # threads in another order: a missing barrier would show
            assert torch.equal(runs[0][key], again[key]), key
    assert ("scan_summary" in emulator.launched) == bool(case.chunk)
    launches = emulator.launched.count("scan_backward") // len(runs)
    assert launches == (-(-(case.chunk or case.length) // 128) if case.pieces else 1)


def test_parts_of_the_gradients_of_the_maps_are_bounded_at_any_length() -> None:
    """The parts at L = 1M, D = 1536, N = 16 would be 25.8 GB: 192 blocks of eight channels."""
    shape = cuda.Plan(channels=8, warps=4, tiles=192, chunk=1 << 20, chunks=1)
    length = cuda.piece(shape, 1, 1, 16, 4)
    assert length % 128 == 0 and 1 << 14 < length < 1 << 16
    assert 0.9 * cuda.PARTIAL_BYTES < 2 * 4 * 192 * 16 * length <= cuda.PARTIAL_BYTES
    split = cuda.Plan(channels=8, warps=4, tiles=8, chunk=21504, chunks=49)
    assert cuda.piece(split, 1, 1, 16, 4) * 49 * 2 * 4 * 8 * 16 <= cuda.PARTIAL_BYTES
    short = cuda.Plan(channels=32, warps=4, tiles=48, chunk=2000, chunks=1)
    assert cuda.piece(short, 64, 1, 16, 4) == 1344 and cuda.piece(short, 8, 1, 16, 4) == 2000
    assert cuda.piece(short, 1 << 20, 1, 16, 4) == 32  # never less than a tile


def test_pieces_change_nothing_but_roundings(
    emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["pieces"]
    tensors, dfinal = make(case), torch.ones(1, 5, 4)
    dy = torch.linspace(-1, 1, 1500).view(1, 300, 5)
    whole = run(case, tensors, dy, dfinal)
    monkeypatch.setattr(cuda, "PARTIAL_BYTES", 0)
    for key, value in run(case, tensors, dy, dfinal).items():
        if key in ("dD", "ddelta_bias"):  # summed in another order
            torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(value, whole[key]), key


def test_nan_does_not_pass_a_reset(emulator: Any) -> None:
    case = Case(70, 5, 4, given="Dzbsir", batch=1)
    tensors = make(case)
    u, resets = tensors[0].contiguous(), torch.zeros(1, 70, dtype=torch.bool)
    resets[0, 37] = True
    clean = run(case, [u, *tensors[1:9], resets], torch.ones_like(u), torch.ones(1, 5, 4))
    u[0, 20] = torch.nan
    dirty = run(case, [u, *tensors[1:9], resets], torch.ones_like(u), torch.ones(1, 5, 4))
    assert dirty["y"][0, 20:37].isnan().all() and torch.equal(
        dirty["y"][0, 37:], clean["y"][0, 37:]
    )
    assert torch.equal(dirty["final"], clean["final"])
    assert torch.equal(dirty["ddelta"][0, 37:], clean["ddelta"][0, 37:])
    u[0, 20], u[0, 50] = 0.0, torch.nan
    assert (
        run(case, [u, *tensors[1:9], resets], torch.ones_like(u), torch.ones(1, 5, 4))["du"][0, :37]
        .isfinite()
        .all()
    )


def test_long_thin_calls_are_split_and_wide_ones_are_not(emulator: Any) -> None:
    emulator.multiprocessors = 132
    decay = torch.ones(1536, 16)

    def plan(batch: int, length: int, width: int = 1536, A: Tensor = decay) -> cuda.Plan:
        return cuda.plan(torch.empty(batch, length, width, device="meta"), A, 1)

    full = plan(16, 8192)
    assert (full.channels, full.chunks) == (32, 1)
    thin = plan(1, 1 << 20, 64, decay[:64])
    assert thin.channels == 8 and thin.chunks > 32
    for p, length in ((full, 8192), (thin, 1 << 20)):
        assert p.channels >= 4 and p.chunk * (p.chunks - 1) < length <= p.chunk * p.chunks
    assert plan(1, 1 << 20, 2, decay[:2]).channels == 8
    assert plan(1, 100, 8, torch.ones(8, 64)).channels == 16


def test_calls_that_the_kernels_do_not_take() -> None:
    x, maps = torch.ones(1, 3, 2), torch.ones(1, 3, 4)
    with pytest.raises(
        BackendError, match="'cuda' cannot be used: it runs on CUDA tensors, these are on cpu"
    ):
        selective_scan(x, x, -torch.ones(2, 4), maps, maps, backend="cuda")
