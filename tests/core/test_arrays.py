"""Weights as NumPy arrays: written and read without torch, and as the core's checkpoints are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longseq.core.arrays import check_arrays, read_arrays, read_parameters, write_arrays
from longseq.core.checkpoints.safe import read_weights, save_weights
from longseq.core.errors import ConfigError, DataError


def test_arrays_are_those_of_checkpoints(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3).T, "y": np.zeros(1)}
    write_arrays(file, arrays, {"width": 3})
    found, known = read_arrays(file)
    assert known == {"width": 3} == read_parameters(file)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    state, hyper = read_weights(file)
    assert hyper == known and np.array_equal(state["x"].numpy(), arrays["x"])
    tied = torch.nn.Module()
    tied.a = torch.nn.Parameter(torch.ones(2))
    tied.b = tied.a
    save_weights(file, tied, {})
    assert np.array_equal(read_arrays(file)[0]["b"], np.ones(2))
    with pytest.raises(ConfigError, match="JSON-able"):
        write_arrays(file, arrays, {"width": object()})


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"\x10" + bytes(40))
    with pytest.raises(DataError, match=r"a\.safetensors: is not a safetensors file"):
        read_arrays(file)
    save_file({"x": torch.zeros(2, dtype=torch.bfloat16)}, file)
    with pytest.raises(DataError, match=r"x is of BF16 numbers.*float32"):
        read_arrays(file)
    assert read_parameters(file) == {}
    save_file({"x": torch.zeros(2)}, file, {"aliases": '{"y": "z"}'})
    with pytest.raises(DataError, match="its alias y is of no tensor"):
        read_arrays(file)
    save_file({"x": torch.zeros(2)}, file, {"hyper_parameters": "[]"})
    with pytest.raises(DataError, match="its hyper_parameters are no names"):
        read_parameters(file)


def test_arrays_are_checked_against_a_model() -> None:
    shapes = {"x": (2,), "y": (1, 2)}
    good = {"x": np.zeros(2), "y": np.zeros((1, 2))}
    check_arrays(shapes, good, "Model")
    for arrays, words in (
        ({"x": good["x"]}, "another model than Model; missing: y"),
        ({**good, "z": np.zeros(1)}, "unexpected: z"),
        ({**good, "y": np.zeros(2)}, r"of another shape: y \(2,\) instead of \(1, 2\)"),
        ({**good, "x": np.array([0, np.nan])}, "not numbers: x"),
    ):
        with pytest.raises(DataError, match=words):
            check_arrays(shapes, arrays, "Model")
