"""What ``longseq doctor`` says about GPUs and backends: what is missing, and what to install."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longseq.core import doctor
from longseq.core.ops import triton_calls


@pytest.mark.parametrize(
    ("built_for", "driver", "words"),
    [
        (None, None, "built without CUDA; to use an NVIDIA GPU, install a PyTorch built for CUDA"),
        ("13.2", None, "no NVIDIA driver on this machine; to use a GPU, install it"),
        (
            "13.2",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue",
            "driver 470.57.02: if there",
        ),
        (
            "13.2",
            "nothing that one could read",
            "driver of unknown version: if there is a GPU, update the driver",
        ),
    ],
)
def test_without_a_device_it_says_why_and_what_to_install(
    built_for: str | None, driver: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "version"
    if driver is not None:
        file.write_text(driver)
    monkeypatch.setattr(doctor, "_DRIVER", file)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = [value for _, item, value in doctor.machine_rows() if item == "CUDA"]
    assert row.startswith("not available: ") and words in row


def test_every_backend_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--no-speed"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in ("reference", "cpu", "cuda", "triton", "mamba_ssm"):
        assert name in out
    rows = {item: value for _, item, value in doctor.backend_rows()}
    assert rows["cpu"].startswith("available") and "not part of this version" not in out
    assert all(value.startswith(("available", "no: ")) and len(value) > 9 for value in rows.values())


def test_triton_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def tensor(dtype: torch.dtype = torch.float32) -> SimpleNamespace:
        return SimpleNamespace(dtype=dtype, is_cuda=True, device=torch.device("cuda:0"))

    monkeypatch.setattr(triton_calls, "_INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_calls.triton_reason(tensor()) == (  # type: ignore[arg-type]
        "it needs compute capability 8.0 or newer, this GPU has 7.5"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert triton_calls.triton_reason(tensor(), None) is None  # type: ignore[arg-type]
    assert "torch.float64" in str(triton_calls.triton_reason(tensor(torch.float64)))  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_calls.describe() == (False, "torch finds no CUDA device")
    monkeypatch.setattr(triton_calls, "_INSTALLED", False)
    there, note = triton_calls.describe()
    assert not there and "pip install triton" in note
