"""What ``longseq doctor`` says about GPUs and backends: what is missing, and what to install."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longseq.core.ops import availability, triton_calls
from longseq.core.shell import doctor


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
    built_for: str | None,
    driver: str | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    assert all(
        value.startswith(("available", "no: ")) and len(value) > 9 for value in rows.values()
    )


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


def test_why_says_which_backend_serves_an_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--why", "ssd", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in lines if line.split()[1] != "│"] == [
        "cpu",
        "triton",
        "mamba_ssm",
        "chunked",
        "reference",
        "cuda",
    ]
    assert "serves" in lines[0] and "ssd, float32 on cpu" in out
    assert "it runs on CUDA tensors" in out and "the operator has no such backend" in out


def test_why_of_a_dtype_and_of_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.run(["--why", "ssd", "--device", "cuda", "--dtype", "float64"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "float64 on cuda" in out and "an argument is torch.float64" in out
    assert "chunked │ serves" in out
    assert doctor.run(["--why", "selective_scan", "--device", "cuda"]) == 0
    assert "torch finds no CUDA device" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_operator_has_one_that_serves(device: str, dtype: torch.dtype) -> None:
    if device == "cuda" and torch.cuda.is_available():
        device = "cuda:0"
    names = availability.operators()
    assert {
        "selective_scan",
        "ssd",
        "linear_attention",
        "mlstm",
        "slstm",
        "delta_rule",
        "fft_conv",
    } <= set(names)
    for name in names:
        rows = availability.explain(name, dtype, device)
        assert [row.state for row in rows].count("serves") == 1, (name, rows)
        assert {row.backend for row in rows} >= {"reference", "cpu", "cuda", "triton", "mamba_ssm"}
        assert all(row.why for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--why", "sssd"], "no operator named 'sssd'; did you mean 'ssd'?"),
        (["--why", "ssd", "--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_why_of_what_there_is_not(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.run(arguments) == 2
    assert words in capsys.readouterr().err
