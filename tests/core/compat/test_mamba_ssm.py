"""The signatures of mamba-ssm: against plain recurrences, and against the published references.

The live tests run where LONGSEQ_UPSTREAM_MAMBA names a checkout of state-spaces/mamba and einops
imports.
"""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from longseq.core.compat import mamba_ssm as compat
from longseq.core.errors import ArgumentError

MAMBA = os.environ.get("LONGSEQ_UPSTREAM_MAMBA")
F64 = torch.float64
LENGTH, WIDTH, STATES, BATCH = 19, 6, 4, 2
LAYOUTS = ["constant", "shared", "grouped"]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype
    )


def scan_inputs(kind_B: str, kind_C: str, complex_: bool) -> dict[str, Tensor]:
    time = 2 * LENGTH if complex_ else LENGTH
    shapes = {
        "constant": (WIDTH, STATES),
        "shared": (BATCH, STATES, time),
        "grouped": (BATCH, 3, STATES, time),
    }
    wide = (lambda t: torch.complex(t, normal(*t.shape, seed=9))) if complex_ else (lambda t: t)
    maps = {
        name: wide(normal(*shapes[kind], seed=seed))
        if kind == "constant"
        else normal(*shapes[kind], seed=seed)
        for name, kind, seed in (("B", kind_B, 1), ("C", kind_C, 2))
    }
    return {
        "u": normal(BATCH, WIDTH, LENGTH),
        "delta": normal(BATCH, WIDTH, LENGTH, seed=3),
        "A": wide(-normal(WIDTH, STATES).exp()),
        **maps,
        "D": normal(WIDTH),
        "z": normal(BATCH, WIDTH, LENGTH, seed=4),
        "delta_bias": normal(WIDTH, seed=5),
    }


def scan_oracle(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """One position after the other, B and C written out for every channel."""

    def at(m: Tensor, t: int) -> Tensor:  # (batch or 1, channels, states)
        if m.dim() == 2:
            return m
        if A.is_complex() and not m.is_complex():
            m = torch.complex(m[..., ::2], m[..., 1::2])
        m = m if m.dim() == 4 else m.unsqueeze(1)
        return m[..., t].repeat_interleave(A.shape[0] // m.shape[1], 1)

    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = softplus(dt) if delta_softplus else dt
    h, outputs = torch.zeros((), dtype=A.dtype), []
    for t in range(u.shape[2]):
        h = torch.exp(dt[:, :, t, None] * A) * h + at(B, t) * (dt * u)[:, :, t, None]
        y = (h * at(C, t)).sum(-1)
        outputs.append(2 * y.real if y.is_complex() else y)
    y = torch.stack(outputs, -1)
    y = y if D is None else y + u * D[:, None]
    y = y if z is None else y * silu(z)
    return (y, h) if return_last_state else y


def run(
    function: Callable[..., Any], inputs: dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    leaves = {k: t.detach().requires_grad_() for k, t in inputs.items()}
    outputs = function(**leaves, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    real = [torch.view_as_real(t) if t.is_complex() else t for t in outputs]
    weights = [normal(*t.shape, seed=7).to(t.dtype) for t in real]
    grads = torch.autograd.grad(real, [*leaves.values()], weights)
    return {
        **{f"output {i}": t.detach() for i, t in enumerate(outputs)},
        **dict(zip(leaves, grads)),
    }


def close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12
) -> float:
    """Returns the largest difference, relative to each tensor's largest value."""
    assert actual.keys() == expected.keys()
    largest = 0.0
    for key, value in expected.items():
        error = ((actual[key] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        assert error <= tolerance, f"{key}: {error:.2e}"
        largest = max(largest, error)
    return largest


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("kind_C", LAYOUTS)
@pytest.mark.parametrize("kind_B", LAYOUTS)
def test_selective_scan(kind_B: str, kind_C: str, complex_: bool) -> None:
    inputs = scan_inputs(kind_B, kind_C, complex_)
    for options in ({"delta_softplus": True}, {"delta_softplus": True, "return_last_state": True}):
        close(run(compat.selective_scan_fn, inputs, **options), run(scan_oracle, inputs, **options))
    small = {k: inputs[k] for k in ("u", "delta", "A", "B", "C")}
    small["delta"] = small["delta"].abs()
    close(run(compat.selective_scan_fn, small), run(scan_oracle, small))
    assert torch.equal(
        compat.selective_scan_fn(**small), run(compat.selective_scan_fn, small)["output 0"]
    )


def test_selective_scan_returns_what_upstream_returns() -> None:
    inputs = {k: v.float() for k, v in scan_inputs("shared", "shared", False).items()}
    half = {k: v.bfloat16() if k in ("u", "delta", "z", "B", "C") else v for k, v in inputs.items()}
    for kind in ("shared", "constant"):
        half["C"] = (
            half["C"] if kind == "shared" else scan_inputs("shared", "constant", False)["C"].float()
        )
        y, last = compat.selective_scan_fn(**half, delta_softplus=True, return_last_state=True)
        assert y.dtype == torch.bfloat16 and y.is_contiguous() and last.dtype == torch.float32
        exact = scan_oracle(**{k: v.double() for k, v in half.items()}, delta_softplus=True)
        assert ((y - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()
    channels_last = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    y = compat.selective_scan_fn(**{**inputs, "u": channels_last})
    assert y.stride() == channels_last.stride()


def test_constant_maps_never_take_the_memory_of_all_states() -> None:
    program = """
import re, torch
from longseq.core.compat.mamba_ssm import selective_scan_fn
def value(key):
    text = open("/proc/self/status").read()
    return 1024 * int(re.search(key + r":\\s+(\\d+)", text)[1])
def run(length):
    u, delta = (torch.randn(1, 128, length).requires_grad_() for _ in range(2))
    A, B, C = (-torch.rand(128, 64).requires_grad_() for _ in range(3))
    before = value("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    selective_scan_fn(u, delta, A, B, C, delta_softplus=True).square().sum().backward()
    return (value("VmHWM") - before) / (4 * u.numel())
run(64)
print(run(8192))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    # glibc keeps freed blocks for itself above a threshold that it moves; a fixed one counts what
    # is in use.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert float(done.stdout) < 16  # one (B, L, D, N) tensor is 64, and autograd would keep several


def update_inputs(heads: int | None, groups: int) -> dict[str, Tensor]:
    lead = () if heads is None else (heads,)
    maps = (BATCH, STATES) if heads is None else (BATCH, groups, STATES)
    return {
        "state": normal(BATCH, *lead, WIDTH, STATES),
        "x": normal(BATCH, *lead, WIDTH),
        "dt": normal(BATCH, *lead, WIDTH, seed=1),
        "A": -normal(*lead, WIDTH, STATES).exp(),
        "B": normal(*maps, seed=2),
        "C": normal(*maps, seed=3),
        "D": normal(*lead, WIDTH, seed=4),
        "z": normal(BATCH, *lead, WIDTH, seed=5),
        "dt_bias": normal(*lead, WIDTH, seed=6),
    }


def update_oracle(state: Tensor, inputs: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """Row by row and head by head through the scan of one position."""
    heads = state.dim() == 4
    i = {
        k: v if heads or k == "state" else v.unsqueeze(0 if k in ("A", "D", "dt_bias") else 1)
        for k, v in inputs.items()
    }
    state = state if heads else state.unsqueeze(1)
    out = torch.empty_like(i["x"])
    for row in range(BATCH):
        for head in range(state.shape[1]):
            dt = i["dt"][row, head] + (i["dt_bias"][head] if "dt_bias" in i else 0)
            dt = softplus(dt) if options.get("dt_softplus") else dt
            group = head * i["B"].shape[1] // state.shape[1]
            new = state[row, head] * torch.exp(dt[:, None] * i["A"][head])
            new = new + (dt * i["x"][row, head])[:, None] * i["B"][row, group]
            state[row, head] = new
            y = new @ i["C"][row, group] + (i["x"][row, head] * i["D"][head] if "D" in i else 0)
            out[row, head] = y * silu(i["z"][row, head]) if "z" in i else y
    return out if heads else out.squeeze(1)


@pytest.mark.parametrize(("heads", "groups"), [(None, 1), (1, 1), (4, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("optional", [False, True])
def test_selective_state_update(heads: int | None, groups: int, optional: bool) -> None:
    inputs = update_inputs(heads, groups)
    state = inputs.pop("state")
    if not optional:
        inputs = {k: inputs[k] for k in ("x", "dt", "A", "B", "C")}
    options = {"dt_softplus": optional}
    expected_state = state.clone()
    expected = update_oracle(expected_state, inputs, options)
    slots = torch.full((5, *state.shape[1:]), torch.nan, dtype=F64)
    slots[[3, 1]] = state
    leaves = {k: v.requires_grad_() for k, v in inputs.items()}
    held = state.data_ptr()
    y = compat.selective_state_update(state, **leaves, **options)
    close({"y": y.detach(), "state": state}, {"y": expected, "state": expected_state})
    assert state.data_ptr() == held and not state.requires_grad
    y.sum().backward()  # although the state it was computed from is overwritten
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves.values())
    indexed = compat.selective_state_update(
        slots, **inputs, **options, state_batch_indices=torch.tensor([3, 1], dtype=torch.int32)
    )
    assert (
        torch.equal(indexed, y)
        and torch.equal(slots[[3, 1]], state)
        and slots[[0, 2, 4]].isnan().all()
    )
    kept = slots.clone()
    padded = compat.selective_state_update(
        slots, **inputs, **options, state_batch_indices=torch.tensor([-1, 1])
    )
    assert (padded[0] == 0).all() and (padded[1] != 0).any()
    assert (
        torch.equal(slots[3], kept[3])
        and not torch.equal(slots[1], kept[1])
        and slots[4].isnan().all()
    )


def test_low_precision_states_are_updated_in_their_own_dtype() -> None:
    inputs = {k: v.bfloat16() for k, v in update_inputs(None, 1).items()}
    inputs["A"] = inputs["A"].float()
    state = inputs.pop("state")
    exact_state = state.double()
    exact = update_oracle(
        exact_state, {k: v.double() for k, v in inputs.items()}, {"dt_softplus": True}
    )
    y = compat.selective_state_update(state, **inputs, dt_softplus=True)
    assert y.dtype == state.dtype == torch.bfloat16
    for found, wanted in ((y, exact), (state, exact_state)):
        assert ((found - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5 * wanted.abs().max()).all()


def test_stepping_equals_the_scan() -> None:
    inputs = scan_inputs("shared", "shared", False)
    y, last = compat.selective_scan_fn(**inputs, delta_softplus=True, return_last_state=True)
    state = torch.zeros(BATCH, WIDTH, STATES, dtype=F64)
    for t in range(LENGTH):
        now = {k: inputs[k][..., t] for k in ("B", "C", "z")}
        y_t = compat.selective_state_update(
            state,
            inputs["u"][..., t],
            inputs["delta"][..., t],
            inputs["A"],
            D=inputs["D"],
            **now,
            dt_bias=inputs["delta_bias"],
            dt_softplus=True,
        )
        close({"y": y_t}, {"y": y[..., t]})
    close({"state": state}, {"state": last})


def ssd_oracle(i: dict[str, Tensor], resets: Tensor, low: float) -> tuple[Tensor, list[Tensor]]:
    dt = softplus(i["dt"] + i["dt_bias"]).clamp(min=low)
    h, outputs, states = i["initial_states"], [], []
    shared = i["x"].shape[2] // i["B"].shape[2]
    B, C = (i[k].repeat_interleave(shared, 2) for k in ("B", "C"))
    for t in range(i["x"].shape[1]):
        h = torch.where(resets[:, t, None, None, None], torch.zeros_like(h), h)
        h = torch.exp(dt[:, t] * i["A"])[..., None, None] * h
        h = h + (dt[:, t, :, None] * i["x"][:, t]).unsqueeze(-1) * B[:, t].unsqueeze(2)
        outputs.append((h * C[:, t].unsqueeze(2)).sum(-1) + i["D"][:, None] * i["x"][:, t])
        states.append(h)
    return torch.stack(outputs, 1) * silu(i["z"]), states


@pytest.mark.parametrize("first", [0, 3])
def test_mamba_chunk_scan_combined(first: int) -> None:
    length, heads, width = 21, 4, 3
    i = {
        "x": normal(1, length, heads, width),
        "dt": normal(1, length, heads),
        "A": -normal(heads).exp(),
        "B": normal(1, length, 2, STATES),
        "C": normal(1, length, 2, STATES, seed=1),
        "D": normal(heads),
        "z": normal(1, length, heads, width, seed=2),
        "dt_bias": normal(heads, seed=1),
        "initial_states": normal(1, heads, width, STATES),
    }
    bounds = [0, 9, 10, 21]
    seq_idx = torch.tensor([[first] * 9 + [5] + [6] * 11], dtype=torch.int32)
    resets = torch.zeros(1, length, dtype=torch.bool)
    resets[:, [9, 10] if first == 0 else [0, 9, 10]] = True  # the initial state is sequence 0's
    y, states = ssd_oracle(i, resets, 0.1)
    options = {
        "chunk_size": 8,
        "seq_idx": seq_idx,
        "dt_softplus": True,
        "dt_limit": (0.1, float("inf")),
    }
    out = compat.mamba_chunk_scan_combined(**i, **options)
    close({"y": out}, {"y": y})
    out, final = compat.mamba_chunk_scan_combined(**i, **options, return_final_states=True)
    close({"y": out, "final": final}, {"y": y, "final": states[-1]})
    more = {
        "cu_seqlens": torch.tensor(bounds),
        "return_varlen_states": True,
        "state_dtype": torch.float32,
    }
    out, final, varlen = compat.mamba_chunk_scan_combined(
        **i, **options, **more, return_final_states=True
    )
    if first == 0:
        close({"varlen": varlen}, {"varlen": torch.cat([states[t - 1] for t in bounds[1:]])})
    assert len(compat.mamba_chunk_scan_combined(**i, **options, **more)) == 2
    with pytest.raises(ArgumentError, match="needs cu_seqlens"):
        compat.mamba_chunk_scan_combined(**i, **options, return_varlen_states=True)


@pytest.mark.parametrize("name", ["selective_scan_fn", "selective_state_update"])
def test_a_wrong_argument_is_named(name: str) -> None:
    scan, update = scan_inputs("shared", "shared", False), update_inputs(None, 1)
    wrong: list[tuple[dict[str, Any], str, Any]] = {
        "selective_scan_fn": [
            (scan, "u", torch.ones(2, 3)),
            (scan, "delta", torch.ones(BATCH, LENGTH, WIDTH)),
            (scan, "B", torch.ones(3)),
            (scan, "C", torch.ones(4, WIDTH)),
            (scan, "z", torch.ones(1)),
            (scan_inputs("shared", "shared", True), "B", torch.ones(BATCH, STATES, LENGTH)),
        ],
        "selective_state_update": [
            (update, "state", torch.ones(2)),
            (update, "x", torch.ones(BATCH, 7)),
            (update, "B", torch.ones(7, 4)),
            (update, "C", torch.ones(BATCH, 7)),
            (update, "dt", "dt"),
            (update, "A", torch.ones(WIDTH)),
            (update, "D", torch.ones(1)),
            (update, "state_batch_indices", torch.ones(BATCH)),
        ],
    }[name]
    for inputs, key, value in wrong:
        with pytest.raises(ArgumentError, match=rf"\b{key}\b"):
            getattr(compat, name)(**{**inputs, key: value})


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the checkout without its package's __init__ and without its Triton layer
    norm."""
    before = set(sys.modules)

    def load(module: str) -> ModuleType:
        if MAMBA is None:
            pytest.skip("LONGSEQ_UPSTREAM_MAMBA names no checkout of state-spaces/mamba")
        pytest.importorskip("einops")
        package, norm = ModuleType("mamba_ssm"), ModuleType("mamba_ssm.ops.triton.layer_norm")
        package.__path__ = [str(Path(MAMBA) / "mamba_ssm")]
        norm._layer_norm_fwd = None  # type: ignore[attr-defined]
        for stub in (package, norm):
            monkeypatch.setitem(sys.modules, stub.__name__, stub)
        return importlib.import_module(module)

    yield load
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "mamba_ssm":
            del sys.modules[name]


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("kind_C", LAYOUTS)
@pytest.mark.parametrize("kind_B", LAYOUTS)
def test_selective_scan_against_upstream(
    upstream: Any, kind_B: str, kind_C: str, complex_: bool
) -> None:
    module = upstream("mamba_ssm.ops.selective_scan_interface")
    assert (
        inspect.signature(module.selective_scan_fn).parameters.keys()
        == inspect.signature(compat.selective_scan_fn).parameters.keys()
    )
    inputs = scan_inputs(kind_B, kind_C, complex_)
    inputs = {k: v.to(torch.complex64) if v.is_complex() else v.float() for k, v in inputs.items()}
    options = {"delta_softplus": True, "return_last_state": True}
    largest = close(
        run(compat.selective_scan_fn, inputs, **options),
        run(module.selective_scan_ref, inputs, **options),
        1e-5,
    )
    print(f"selective_scan_ref {kind_B} {kind_C} complex={complex_}: {largest:.1e}")


@pytest.mark.parametrize(("heads", "groups"), [(None, 1), (4, 2)])
def test_state_update_against_upstream(upstream: Any, heads: int | None, groups: int) -> None:
    module = upstream("mamba_ssm.ops.triton.selective_state_update")
    inputs = {k: v.float() for k, v in update_inputs(heads, groups).items()}
    mine, theirs = inputs.pop("state").clone(), update_inputs(heads, groups)["state"].float()
    y = compat.selective_state_update(mine, **inputs, dt_softplus=True)
    expected = module.selective_state_update_ref(theirs, **inputs, dt_softplus=True)
    print(
        "selective_state_update_ref",
        close({"y": y, "state": mine}, {"y": expected, "state": theirs}, 1e-6),
    )
