"""Which backend serves a call: names, reasons, the one announcement of a fallback, instruction sets."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longseq.core import _cpu
from longseq.core.errors import BackendError, ConfigError
from longseq.core.ops import availability, backends
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.selective_scan import selective_scan


def scan(backend: str) -> Any:
    x = torch.linspace(-1, 1, 60).view(1, 20, 3)
    return selective_scan(x, x.abs(), -torch.ones(3, 2), x[..., :2], x[..., 1:], backend=backend)  # type: ignore[arg-type]


CALLS = {
    "selective_scan": scan,
    "linear_scan": lambda backend: linear_scan(
        torch.full((1, 5, 2), 0.5), torch.ones(1, 5, 2), backend=backend
    ),
    "causal_conv1d": lambda backend: causal_conv1d(torch.ones(1, 5, 2), torch.ones(2, 3), backend=backend),
}


@pytest.fixture
def broken_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled kernels fail to load, as in a process that has not tried to load them yet."""
    real = builtins.__import__

    def refuse(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if fromlist and "_cpu" in fromlist:
            raise ImportError("undefined symbol: _ZN3foo")
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", refuse)
    module, reason = backends._load_native()
    monkeypatch.setattr(backends, "_NATIVE", module)
    monkeypatch.setattr(backends, "_NATIVE_ERROR", reason)
    backends._announce.cache_clear()
    yield
    backends._announce.cache_clear()


@pytest.mark.parametrize("operator", CALLS)
def test_backends_by_name(operator: str) -> None:
    fast, slow, auto = (CALLS[operator](name) for name in ("cpu", "reference", "auto"))
    for a, b, c in zip(fast, slow, auto):
        torch.testing.assert_close(a, b)
        assert torch.equal(a, c)
    with pytest.raises(
        ConfigError, match=rf"{operator}: no backend named 'refrence'; did you mean 'reference'\?"
    ):
        CALLS[operator]("refrence")
    for name in ("cuda", "triton", "mamba_ssm"):
        with pytest.raises(BackendError, match=rf"{operator}: backend '{name}' cannot be used: \w+"):
            CALLS[operator](name)


@pytest.mark.parametrize("operator", CALLS)
def test_a_fallback_is_announced_once_with_its_reason(operator: str, broken_extension: None) -> None:
    with pytest.warns(
        UserWarning, match=rf"longseq\.{operator} runs its slow reference: .*undefined symbol"
    ) as found:
        CALLS[operator]("auto")
    assert len(found) == 1 and found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS[operator]("auto")  # not again
        CALLS[operator]("reference")  # what was asked for is not a fallback
    with pytest.raises(BackendError, match=r"undefined symbol.*reinstall longseq"):
        CALLS[operator]("cpu")
    with pytest.raises(BackendError, match="reinstall longseq"):
        backends.native()
    assert ("cpu", False) in [row[:2] for row in availability.describe()]


def test_description_names_every_backend() -> None:
    rows = {name: (available, note) for name, available, note in availability.describe()}
    assert set(rows) == set(backends.BACKENDS) - {"auto"}
    assert rows["cpu"][0] and _cpu.isa() in rows["cpu"][1]
    assert all(note for _, note in rows.values())


def test_instruction_sets() -> None:
    before = _cpu.isa()
    assert before in _cpu.available_isas() and "baseline" in _cpu.available_isas()
    for name in _cpu.available_isas():
        _cpu.select_isa(name)
        assert _cpu.isa() == name
    with pytest.raises(ValueError, match="not available on this machine: mmx"):
        _cpu.select_isa("mmx")
    assert _cpu.isa() == _cpu.available_isas()[-1]
    _cpu.select_isa(before)


def test_the_environment_chooses_an_instruction_set() -> None:
    program = "from longseq.core import _cpu; print(_cpu.isa())"
    environment = {**os.environ, "LONGSEQ_CPU_ISA": "baseline"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "baseline"


def test_tensors_elsewhere_are_not_for_the_cpu_kernels() -> None:
    class Elsewhere:
        device = torch.device("cuda:0")

    assert "cuda:0" in str(backends.cpu_reason(Elsewhere()))  # type: ignore[arg-type]
    assert backends.cpu_reason(torch.ones(1), None) is None
