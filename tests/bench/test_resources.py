"""The report of registers and local memory: the compiler's log in figures and words."""

from __future__ import annotations

import pytest

from longseq.bench.gpu import resources
from longseq.core.kernels import nvrtc

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'linear_forward' for 'sm_90'
ptxas info    : Function properties for linear_forward
    {stack} bytes stack frame, {stores} bytes spill stores, 20 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers
ptxas info    : Compiling entry function 'another' for 'sm_90'
ptxas info    : Function properties for another
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
"""


def test_a_log_in_figures() -> None:
    found = resources.usages(LOG.format(stack=24, stores=16, registers=255))
    assert found["linear_forward"] == resources.Usage(255, 24, 16, 20)
    assert found["another"] == resources.Usage(32, 0, 0, 0)
    with pytest.raises(ValueError, match="does not say what linear_forward takes"):
        resources.usages(LOG.replace("stack frame", "frame"))


def test_recording_starts_nothing_and_puts_the_launch_back() -> None:
    real = nvrtc.launch
    with resources.recorded() as seen:
        resources.VARIANTS["walks"]()
    assert nvrtc.launch is real
    assert {kernel for kernels in seen.values() for kernel in kernels} >= {
        "linear_forward",
        "conv_backward",
    }


def test_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The larger figure of a kernel that is compiled with several macros, and a line for each."""
    logs = iter(
        [LOG.format(stack=0, stores=0, registers=90), LOG.format(stack=24, stores=16, registers=80)]
    )

    def launch_twice() -> None:
        for number in (0, 1):
            nvrtc.launch(
                "linear_scan.cu",
                "linear_forward",
                {"LONGSEQ_REVERSE": number},
                (1,),
                32,
                None,
                None,
            )  # type: ignore[arg-type]

    monkeypatch.setattr(resources, "VARIANTS", {"tiny": launch_twice})
    monkeypatch.setattr(
        nvrtc, "compile_cubin", lambda name, defines, architecture: (b"", next(logs))
    )
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 1))
    (row,) = resources.report([90])
    assert row == {
        "variant": "tiny",
        "architecture": 90,
        "kernel": "linear_forward",
        "registers": 90,
        "local_memory": 24,
        "spill_stores": 16,
        "spill_loads": 20,
        "nvrtc": "13.1",
    }
    out = capsys.readouterr().out
    assert "NVRTC 13.1" in out
    assert (
        "sm_90, linear_forward: 90 registers, 24 bytes of local memory, 16 + 20 bytes of spills"
        in out
    )
    assert "spills" not in resources.line({**row, "spill_stores": 0, "spill_loads": 0})
