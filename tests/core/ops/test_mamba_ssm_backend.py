"""The backend "mamba_ssm": what it hands over, what it refuses, and what it says where the package
is absent.

The package needs a GPU, so a module of the same names and signatures stands in for it, which
computes by longseq's reference operators. These tests show that layouts, dtypes, defaults and
resets are handed over and taken back as the published signatures have them; nothing about
mamba-ssm's own kernels, for which there is ``make test-gpu``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.errors import BackendError
from longseq.core.ops import availability
from longseq.core.ops import mamba_ssm_calls as calls
from longseq.core.ops.selective_scan import selective_scan, selective_scan_reference
from longseq.core.ops.ssd import ssd, ssd_reference

B, L, W, N, G, H = 2, 11, 6, 4, 2, 4


def published_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """The signature of ``selective_scan_fn``, with the checks of its compiled kernel."""
    assert u.shape == (u.shape[0], W, L) == delta.shape and A.shape == (W, N)
    assert B.shape == C.shape == (u.shape[0], G, N, L)
    assert all(
        t.dtype == u.dtype and t.stride(-1) == 1
        for t in (delta, B, C) + (() if z is None else (z,))
    )
    assert all(t is None or t.dtype == torch.float32 for t in (A, D, delta_bias))
    y, last = selective_scan_reference(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        B.permute(0, 3, 1, 2),
        C.permute(0, 3, 1, 2),
        D,
        None if z is None else z.transpose(1, 2),
        delta_bias,
        delta_softplus=delta_softplus,
    )
    return (y.transpose(1, 2), last) if return_last_state else y.transpose(1, 2)


def published_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: Any = None,
) -> Any:
    """The signature of ``mamba_chunk_scan_combined``: the state is zeroed wherever ``seq_idx``
    changes."""
    assert chunk_size & (chunk_size - 1) == 0 and return_final_states
    resets = None
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32 and seq_idx.shape == x.shape[:2]
        resets = torch.diff(seq_idx, dim=1, prepend=torch.zeros_like(seq_idx[:, :1])) != 0
    return ssd_reference(
        x, dt, A, B, C, D, z, dt_bias, initial_states, resets, dt_softplus, dt_limit
    )


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """A mamba-ssm that computes on CPU tensors."""
    names = ["mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", calls.SCAN[0], calls.SSD[0]]
    modules = {name: ModuleType(name) for name in names}
    modules[calls.SCAN[0]].selective_scan_fn = published_scan  # type: ignore[attr-defined]
    modules[calls.SSD[0]].mamba_chunk_scan_combined = published_ssd  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(calls, "_on_gpu", lambda tensor: True)
    calls._load.cache_clear()
    yield modules
    calls._load.cache_clear()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def scan_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "u": normal(B, L, W, dtype=dtype),
        "delta": normal(B, L, W, seed=1, dtype=dtype),
        "A": -normal(W, N).exp(),
        "B": normal(B, L, G, N, dtype=dtype),
        "C": normal(B, L, G, N, seed=2, dtype=dtype),
        "D": normal(W),
        "z": normal(B, L, W, seed=3, dtype=dtype),
        "delta_bias": normal(W, seed=4),
    }


def ssd_inputs() -> dict[str, Tensor]:
    return {
        "x": normal(B, L, H, 3),
        "dt": normal(B, L, H),
        "A": -normal(H).exp(),
        "B": normal(B, L, G, N),
        "C": normal(B, L, G, N, seed=2),
        "D": normal(H),
        "z": normal(B, L, H, 3, seed=3),
        "dt_bias": normal(H, seed=4),
        "initial_states": normal(B, H, 3, N, seed=5),
    }


def agree(function: Any, tensors: dict[str, Tensor], with_state: bool, **options: Any) -> None:
    """By the package and by the reference: outputs, and gradients of all arguments."""
    found = []
    for backend in ("mamba_ssm", "reference"):
        leaves = {key: value.clone().requires_grad_() for key, value in tensors.items()}
        y, last = function(**leaves, **options, backend=backend)
        loss = (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
        loss = loss + last.sin().sum() if with_state else loss
        found.append((y, last, *torch.autograd.grad(loss, list(leaves.values()))))
    for key, a, b in zip(["y", "last", *tensors], *found):
        assert a.dtype == b.dtype and a.shape == b.shape, key
        torch.testing.assert_close(
            a, b, rtol=2e-5, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_scan(package: Any) -> None:
    agree(selective_scan, scan_inputs(), False, delta_softplus=True)
    few = {
        key: value for key, value in scan_inputs().items() if key in ("u", "delta", "A", "B", "C")
    }
    few["delta"] = few["delta"].abs()
    agree(selective_scan, few, False)


def test_ssd(package: Any) -> None:
    resets = torch.zeros(B, L, dtype=torch.bool)
    resets[0, [0, 4]] = resets[1, 7] = True
    for given in (None, resets):
        agree(
            ssd,
            ssd_inputs(),
            True,
            dt_softplus=True,
            resets=given,
            chunk_size=5,
            dt_limit=(0.01, 1.0),
        )


def test_autocast_lowers_activations_only(package: Any) -> None:
    tensors = scan_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        # ``published_scan`` checks the dtypes
        y, last = selective_scan(**tensors, backend="mamba_ssm")
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32


def test_the_final_state_of_the_scan_cannot_be_differentiated_in_silence(package: Any) -> None:
    tensors = {key: value.requires_grad_() for key, value in scan_inputs().items()}
    y, last = selective_scan(**tensors, delta_softplus=True, backend="mamba_ssm")
    y.sum().backward()
    _, last = selective_scan(**tensors, delta_softplus=True, backend="mamba_ssm")
    with pytest.raises(BackendError, match="no gradient of the final state"):
        last.sum().backward()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"initial_state": torch.zeros(B, W, N)}, "starts from zero and takes no initial state"),
        ({"resets": torch.zeros(B, L, dtype=torch.bool)}, "has no resets inside a sequence"),
        ({"A": -torch.ones(W, N, dtype=torch.complex64)}, "complex arguments are not handed to it"),
        ({"delta": normal(B, L, W, dtype=torch.bfloat16)}, "u, delta, B, C and z in one dtype"),
        ({"A": -torch.ones(W, N, dtype=torch.float64)}, "an argument is torch.float64"),
    ],
)
def test_what_the_scan_cannot_serve(package: Any, change: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(
        BackendError, match=f"selective_scan: backend 'mamba_ssm' cannot be used: .*{reason}"
    ):
        selective_scan(**{**scan_inputs(), **change}, backend="mamba_ssm")


def test_other_refusals(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {
        **scan_inputs(),
        "A": -torch.ones(W, 300),
        "B": torch.ones(B, L, 300),
        "C": torch.ones(B, L, 300),
    }
    with pytest.raises(BackendError, match="up to 256 states, this call has 300"):
        selective_scan(**wide, backend="mamba_ssm")
    with pytest.raises(BackendError, match=r"ssd: .* x, B, C and z in one dtype"):
        ssd(**{**ssd_inputs(), "z": normal(B, L, H, 3, dtype=torch.float16)}, backend="mamba_ssm")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, calls.SCAN[0], package[calls.SCAN[0]])
    with pytest.raises(BackendError, match="it runs on CUDA tensors, these are on cpu"):
        selective_scan(**scan_inputs(), backend="mamba_ssm")


def row() -> tuple[bool, str]:
    return next(
        (there, note) for name, there, note in availability.describe() if name == "mamba_ssm"
    )


def test_an_absent_or_broken_package(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> Any:
        def load(name: str) -> ModuleType:
            raise error

        return load

    cases: list[tuple[Exception, str]] = [
        (
            ModuleNotFoundError("no", name="mamba_ssm"),
            r'not installed: pip install "longseq\[mamba-ssm\]"',
        ),
        (ModuleNotFoundError("no", name="einops"), "it needs einops: pip install einops"),
        (ImportError("undefined symbol: _ZN3c10"), "undefined symbol.*reinstall it for torch"),
    ]
    for error, reason in cases:
        calls._load.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(calls.importlib, "import_module", raising(error))
            with pytest.raises(BackendError, match=f"'mamba_ssm' cannot be used: .*{reason}"):
                ssd(**ssd_inputs(), backend="mamba_ssm")
            there, note = row()
            assert not there
            assert note.count("mamba-ssm") <= 2  # the same reason is said once


def test_a_package_without_its_compiled_scan(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package[calls.SCAN[0]].selective_scan_cuda = None
    with pytest.raises(BackendError, match="built without its scan"):
        selective_scan(**scan_inputs(), backend="mamba_ssm")
    assert row() == (False, "mamba-ssm is installed, but torch finds no CUDA device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there, note = calls.describe()
    assert (
        there
        and note.startswith("ssd by the mamba-ssm package")
        and "built without its scan" in note
    )
