"""Sizes that no machine can hold are refused before a model is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from longseq.core.errors import ConfigError, is_out_of_memory
from longseq.core.shell.cli import main
from longseq.core.training.sizes import check_asked, free_memory, within_memory


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("n_layers", 10**9, "10,000"),
        ("depths", [2, 10**6], "10,000"),
        ("d_model", 10**9, "134,217,728"),
        ("out_dim", 10**12, "134,217,728"),
        ("batch_size", 10**9, "134,217,728"),
        ("num_workers", 10**6, "1,024"),
        ("devices", 10**5, "1,024"),
    ],
)
def test_a_size_of_too_many_digits_is_named(name: str, value: object, most: str) -> None:
    with pytest.raises(ConfigError, match=f"--model.{name} .*at most {most} are possible"):
        check_asked({name: value}, "--model.")


def test_the_sizes_of_real_models_pass() -> None:
    check_asked(
        {"n_layers": 128, "d_model": 16384, "n_tokens": 256_000, "length": 2**20, "seed": 10**12},
        "--model.",
    )


def test_weights_beyond_the_memory_are_refused_before_they_are_filled() -> None:
    made: list[nn.Module] = []
    said = r"weights alone take more than the memory: 0\.0 GiB"
    with pytest.raises(ConfigError, match=said), within_memory(limit=10 * 4 * 110):
        for _ in range(20):
            made.append(nn.Linear(10, 10))
    assert len(made) == 10
    assert nn.Linear(100, 100).weight.numel() == 10_000  # nothing is watched any more
    assert free_memory() > 2**20


def test_a_table_that_cannot_be_had_is_no_traceback() -> None:
    said = "the model does not fit into the memory"
    with pytest.raises(ConfigError, match=said), within_memory():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="another"), within_memory():
        raise ConfigError("another")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("Caught _ArrayMemoryError in DataLoader worker process 0."),
    ],
)
def test_no_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> int:
        raise error

    monkeypatch.setattr("longseq.core.shell.cli._dispatch", fail)
    assert is_out_of_memory(error) and not is_out_of_memory(ValueError("memory"))
    assert main(["x"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: out of memory: ") and text.count("\n") == 1
    assert "lower the batch size" in text


def test_fit_refuses_a_number_of_layers(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["genomics", "fit", "--data.fasta", "tiny", "--model.n_layers", "1000000000"]
    assert main(argv) == 2
    assert "--model.n_layers 1,000,000,000: at most 10,000" in capsys.readouterr().err
