"""CUDA emulated: builds the sources with the C++ compiler, runs them on CPU tensors by
``emulator.h``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq.core.kernels import cuda_sources, nvrtc
from longseq.core.ops import cuda_calls
from longseq.core.ops.slstm import cuda as slstm_cuda

COMPILER = os.environ.get("CXX") or "c++"


class Emulator:
    """Stands in for ``nvrtc.launch``, and for a device.

    Args:
        folder: for what is built.
        multiprocessors: of the device that it stands for.
    """

    def __init__(self, folder: Path, multiprocessors: int = 1) -> None:
        self.folder = folder
        self.multiprocessors = multiprocessors
        self.order = 0  # in which threads run between barriers
        self.launched: list[str] = []
        self.library = cache(self._library)

    def _library(self, name: str, defines: tuple[tuple[str, str | int], ...]) -> ctypes.CDLL:
        text = (Path(__file__).parent / "emulator.h").read_text() + cuda_sources.source(name)
        stem = hashlib.sha256((text + repr(defines)).encode()).hexdigest()[:16]
        code, library = self.folder / f"{stem}.cpp", self.folder / f"{stem}.so"
        code.write_text(text)
        command = [
            COMPILER,
            "-std=c++17",
            "-O1",
            "-fno-strict-aliasing",
            "-U_FORTIFY_SOURCE",
            "-shared",
            "-fPIC",
        ]
        command += [
            "-w",
            *[f"-D{key}={value}" for key, value in defines],
            str(code),
            "-o",
            str(library),
        ]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))

    def launch(
        self,
        name: str,
        kernel: str,
        defines: Mapping[str, str | int],
        grid: Sequence[int],
        threads: int,
        arguments: Any,
        device: torch.device,
        shared: int = 0,
    ) -> None:
        assert device.type == "cpu"
        self.launched.append(kernel)
        function = getattr(self.library(name, tuple(sorted(defines.items()))), f"emulate_{kernel}")
        blocks = (ctypes.c_uint * 3)(*[*grid, 1, 1][:3])
        function(ctypes.byref(arguments), blocks, threads, shared, self.order)


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulator's fibers need Linux")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler {COMPILER} to build the emulator with")
    return Emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture
def emulator(_built: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Kernels run in the emulator, on CPU tensors, as on a device with one multiprocessor."""
    _built.order, _built.multiprocessors = 0, 1
    _built.launched.clear()
    monkeypatch.setattr(nvrtc, "launch", _built.launch)
    monkeypatch.setattr(cuda_calls, "multiprocessors", lambda device: _built.multiprocessors)
    monkeypatch.setattr(slstm_cuda, "shared_limit", lambda device: 227 * 1024)
    return _built
