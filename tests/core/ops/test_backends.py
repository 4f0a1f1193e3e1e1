"""Which backend serves a call: names, reasons, the one announcement of a fallback, instruction
sets."""

from __future__ import annotations

import builtins
import importlib
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from longseq.core import _cpu
from longseq.core.errors import BackendError, ConfigError
from longseq.core.ops import availability, backends
from longseq.core.ops.backends import FALLBACKS, REGISTRY
from longseq.core.ops.block_linear import block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.cross_scan import Way, cross_scan
from longseq.core.ops.depthwise_conv2d import depthwise_conv2d
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.gated_conv import gated_conv
from longseq.core.ops.gated_norm import gated_rms_norm
from longseq.core.ops.gelu import biased_gelu
from longseq.core.ops.gelu_mlp import gelu_mlp
from longseq.core.ops.glu import biased_glu
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.rms_norm import rms_norm
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.slstm import slstm
from longseq.core.ops.ssd import ssd
from longseq.core.ops.two_way_recurrence import two_way_recurrence


def scan(backend: str) -> Any:
    x = torch.linspace(-1, 1, 60).view(1, 20, 3)
    return selective_scan(x, x.abs(), -torch.ones(3, 2), x[..., :2], x[..., 1:], backend=backend)  # type: ignore[arg-type]


def rows(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, math.prod(shape)).view(shape).sin()


def scalars(*shape: int) -> torch.Tensor:
    return rows(*shape).sigmoid()


STATES = rows(1, 9, 2, 3)
CALLS: dict[str, Callable[[Any], Any]] = {
    "selective_scan": scan,
    "linear_scan": lambda backend: linear_scan(
        torch.full((1, 5, 2), 0.5), torch.ones(1, 5, 2), backend=backend
    ),
    "causal_conv1d": lambda backend: causal_conv1d(
        torch.ones(1, 5, 2), torch.ones(2, 3), backend=backend
    ),
    "slstm": lambda backend: slstm(rows(1, 9, 4, 2, 3), rows(2, 12, 3), backend=backend),
    "ssd": lambda backend: ssd(
        STATES, scalars(1, 9, 2), -torch.ones(2), STATES, STATES.flip(1), backend=backend
    ),
    "linear_attention": lambda backend: linear_attention(
        STATES[:, :, :1], STATES[:, :, 1:], STATES, -scalars(1, 9, 2), backend=backend
    ),
    "mlstm": lambda backend: mlstm(
        STATES, STATES.flip(1), STATES, scalars(1, 9, 2), scalars(1, 9, 2), backend=backend
    ),
    "fft_conv": lambda backend: fft_conv(rows(1, 9, 3), rows(3, 9), backend=backend),
    "gated_conv": lambda backend: gated_conv(
        rows(1, 9, 6), rows(6, 3), None, rows(2, 9), backend=backend
    ),
    "gated_norm": lambda backend: gated_rms_norm(
        rows(2, 80, 32), rows(2, 80, 32), torch.ones(32), backend=backend
    ),
    "rms_norm": lambda backend: rms_norm(rows(1, 9, 6), torch.ones(6), backend=backend),
    "biased_glu": lambda backend: biased_glu(rows(1, 9, 6), rows(6), backend=backend),
    "biased_gelu": lambda backend: biased_gelu(rows(1, 9, 6), rows(6), backend=backend),
    "gelu_mlp": lambda backend: gelu_mlp(
        rows(1, 9, 6), rows(8, 6), rows(8), rows(5, 8), rows(5), backend=backend
    ),
    "depthwise_conv2d": lambda backend: depthwise_conv2d(
        rows(1, 3, 4, 5), rows(5, 1, 3, 3), backend=backend
    ),
    "cross_scan": lambda backend: cross_scan(
        rows(1, 12, 5),
        rows(1, 12, 2, 4),
        rows(2, 5, 2),
        rows(2, 5),
        -scalars(2, 5, 1),
        rows(2, 5),
        [Way(False, 0), Way(True, 3)],
        backend=backend,
    ),
    "two_way_recurrence": lambda backend: two_way_recurrence(rows(1, 9, 6), backend=backend),
    "block_linear": lambda backend: block_linear(rows(1, 9, 6), rows(3, 2, 2), backend=backend),
}
FORMS = {name: FALLBACKS[REGISTRY[name].fallback] for name in CALLS}


def flat(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


@pytest.fixture
def broken_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled kernels fail to load, as in a process that has not tried to load them yet."""
    real = builtins.__import__

    def refuse(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
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
    fast, slow, auto = (flat(CALLS[operator](name)) for name in ("cpu", "reference", "auto"))
    for a, b, c in zip(fast, slow, auto):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert torch.equal(a, c)
    with pytest.raises(
        ConfigError, match=rf"{operator}: no backend named 'refrence'; did you mean 'reference'\?"
    ):
        CALLS[operator]("refrence")
    for name in ("cuda", "triton", "mamba_ssm"):
        with pytest.raises(
            BackendError, match=rf"{operator}: backend '{name}' cannot be used: \w+"
        ):
            CALLS[operator](name)


@pytest.mark.parametrize("operator", CALLS)
def test_a_fallback_is_announced_once_with_its_reason(
    operator: str, broken_extension: None
) -> None:
    with pytest.warns(UserWarning) as found:
        CALLS[operator]("auto")
    ours = [
        one for one in found if f"longseq.{operator} runs {FORMS[operator]}: " in str(one.message)
    ]
    assert len(ours) == 1 and ours[0].filename == __file__
    assert re.search("cpu: .*undefined symbol", str(ours[0].message))
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


@pytest.mark.parametrize("operator", ["ssd", "linear_attention", "mlstm", "delta_rule", "dplr"])
def test_the_reference_of_a_chunked_operator_is_its_recurrence(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chunked(*arguments: Any) -> Any:
        raise AssertionError("the chunked form was run")

    module = importlib.import_module(f"longseq.core.ops.{operator}")
    monkeypatch.setitem(module._RUN, "chunked", chunked)
    monkeypatch.setitem(module._RUN, "cpu", chunked)
    gates = scalars(1, 9, 2)
    calls = CALLS | {
        "delta_rule": lambda backend: module.delta_rule(
            STATES, STATES, STATES, gates, backend=backend
        ),
        "dplr": lambda backend: module.dplr(*[STATES] * 5, -STATES.square(), backend=backend),
    }
    calls[operator]("reference")
    with pytest.raises(AssertionError, match="the chunked form was run"):
        calls[operator]("auto")


def test_the_chunked_form_is_announced_by_its_name_where_a_gpu_has_no_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dispatch = REGISTRY["ssd"]
    monkeypatch.setitem(dispatch._auto, "cpu", lambda call: "it runs on CPU tensors")
    monkeypatch.setitem(dispatch._auto, "triton", lambda call: "triton is not installed")
    backends._announce.cache_clear()
    with pytest.warns(
        UserWarning, match="ssd runs its chunked form.*triton: triton is not installed"
    ):
        assert dispatch.choose("auto", None) == "chunked"
    backends._announce.cache_clear()


def test_torchs_own_operations_are_no_fallback_where_they_are_the_form() -> None:
    low = rows(1, 9, 6).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        biased_glu(low)
        block_linear(low, rows(3, 2, 2).bfloat16())
        gated_rms_norm(low, low, torch.ones(6))
    with pytest.raises(
        BackendError, match="biased_glu: backend 'cpu' cannot be used: it takes float32 or"
    ):
        biased_glu(low, backend="cpu")
    with pytest.raises(
        BackendError, match="for up to 4096 values torch's own operations are as quick"
    ):
        learnt = rows(1, 9, 6).requires_grad_()  # so that torch's dispatcher has to see the call
        gated_rms_norm(learnt, rows(1, 9, 6), torch.ones(6), backend="cpu")
