"""The CUDA sources through NVRTC, which needs no GPU: resources, the cache, the launch, reasons."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import re
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longseq.bench.gpu import resources
from longseq.core.errors import BackendError
from longseq.core.kernels import cuda_sources, nvrtc
from longseq.core.ops import availability, cuda_calls, linear_scan

ROOT = Path(__file__).parents[3]

needs_nvrtc = pytest.mark.skipif(
    nvrtc.nvrtc_reason() is not None, reason=f"NVRTC cannot be used here: {nvrtc.nvrtc_reason()}"
)
TINY = {
    "LONGSEQ_COMPLEX": 0,
    "LONGSEQ_REVERSE": 0,
    "LONGSEQ_A": "float",
    "LONGSEQ_B": "float",
    "LONGSEQ_OUT": "float",
}


@needs_nvrtc
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("variant", resources.VARIANTS)
def test_every_source_compiles_and_keeps_its_arrays_in_registers(
    variant: str, architecture: int
) -> None:
    """How many registers are spilled is the compiler's affair, and a report of ``make
    test-gpu``."""
    for kernel, usage in resources.compile_variant(variant, architecture).items():
        assert usage.local_memory <= resources.LOCAL_MEMORY_LIMIT, (kernel, usage)


def test_the_variants_use_every_source() -> None:
    with resources.recorded() as seen:
        for launch in resources.VARIANTS.values():
            launch()
    assert {name for name, _ in seen} == {file.name for file in cuda_sources.SOURCES.glob("*.cu")}


@needs_nvrtc
def test_a_wrong_source_is_reported_with_the_compilers_message() -> None:
    with pytest.raises(BackendError, match=r"cannot compile linear_scan.cu for sm_90: .*LONGSEQ_A"):
        nvrtc.compile_cubin("linear_scan.cu", {"LONGSEQ_COMPLEX": 0, "LONGSEQ_REVERSE": 0}, 90)


def test_a_wheel_carries_every_source() -> None:
    """Nothing that the packaging leaves out is a CUDA source, or a header that one includes."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    ignored = (ROOT / ".gitignore").read_text().split() if (ROOT / ".gitignore").is_file() else []
    patterns = [*settings["wheel"]["exclude"], *settings["sdist"]["exclude"], *ignored]
    assert settings["wheel"]["packages"]["longseq/core"] == "core"
    files = sorted(cuda_sources.SOURCES.iterdir())
    assert {file.suffix for file in files} == {".cu", ".cuh"}
    for file in files:
        parts = Path("core/kernels/cuda") / file.name
        for pattern in patterns:
            plain = pattern.strip("/")
            hit = fnmatch.fnmatch(str(parts), plain) or any(
                fnmatch.fnmatch(p, plain) for p in parts.parts
            )
            assert not hit, (file.name, pattern)
        assert '#include "' not in cuda_sources.source(file.name)  # each is found beside it


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Compilations are written down instead of made; the cache is empty."""
    calls: list[tuple[Any, ...]] = []

    def compile_cubin(*arguments: Any) -> tuple[bytes, str]:
        calls.append(arguments)
        return b"code of " + repr(arguments).encode(), ""

    monkeypatch.setattr(nvrtc, "compile_cubin", compile_cubin)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "cache"))
    return calls


def test_cache(compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = nvrtc.cubin("linear_scan.cu", TINY, 90)
    (file,) = (tmp_path / "cache" / "kernels").iterdir()
    assert (
        nvrtc.cubin("linear_scan.cu", dict(reversed(TINY.items())), 90) == code
        and len(compiled) == 1
    )
    for broken in (
        b"",
        file.read_bytes()[:-1],
        file.read_bytes()[:60] + b"X" + file.read_bytes()[61:],
    ):
        file.write_bytes(broken)
        before = len(compiled)
        assert nvrtc.cubin("linear_scan.cu", TINY, 90) == code and len(compiled) == before + 1
        assert nvrtc.cubin("linear_scan.cu", TINY, 90) == code and len(compiled) == before + 1
    before = len(compiled)
    nvrtc.cubin("linear_scan.cu", TINY, 80)
    nvrtc.cubin("linear_scan.cu", {**TINY, "LONGSEQ_COMPLEX": 1}, 90)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 1))
    nvrtc.cubin("linear_scan.cu", TINY, 90)
    monkeypatch.setattr(nvrtc, "source", lambda name: "another")
    nvrtc.cubin("linear_scan.cu", TINY, 90)
    assert len(compiled) == before + 4
    assert len(list((tmp_path / "cache" / "kernels").iterdir())) == 5


def test_many_may_compile_at_once_and_nowhere_to_keep_it_is_no_error(
    compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(nvrtc.cubin("linear_scan.cu", TINY, 90)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(set(results)) == 1
    assert [f.suffix for f in (tmp_path / "cache" / "kernels").iterdir()] == [".cubin"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "file"))
    assert nvrtc.cubin("linear_scan.cu", TINY, 90) == results[0]


def test_a_cache_that_cannot_be_used_costs_time_only(
    compiled: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def full(path: Path) -> Iterator[Path]:
        raise OSError(28, "No space left on device")
        yield path

    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "atomic_path", full)
        code = nvrtc.cubin("linear_scan.cu", TINY, 90)
    assert code.startswith(b"code of") and not list((tmp_path / "cache" / "kernels").iterdir())
    nvrtc.cache_file("linear_scan.cu", TINY, 90).mkdir()  # neither to be read nor replaced
    assert nvrtc.cubin("linear_scan.cu", TINY, 90) == code and len(compiled) == 2


def test_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: list[Any]) -> None:
    """What the driver is given: the module once, then the grid, the stream and the parameters."""
    calls: list[Any] = []

    def start(function: Any, *rest: Any) -> tuple[int]:
        *numbers, stream, pointers, extra = rest
        (address,) = (ctypes.c_void_p * 1).from_address(pointers)
        calls.append(
            (function, *numbers, stream, list((ctypes.c_int64 * 20).from_address(address)), extra)
        )
        return (0,)

    def load(code: bytes) -> tuple[int, str]:
        calls.append(code)
        return 0, "module"

    driver = SimpleNamespace(
        cuCtxGetCurrent=lambda: (0, 7),
        cuModuleLoadData=load,
        CUstream=int,
        cuLaunchKernel=start,
        cuModuleGetFunction=lambda module, name: (0, name.decode()),
        cuFuncSetAttribute=lambda *arguments: (calls.append(arguments[1:]), (0,))[1],
        CUfunction_attribute=SimpleNamespace(
            CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared"
        ),
    )
    monkeypatch.setattr(nvrtc, "_load", lambda: (None, driver, ""))
    monkeypatch.setattr(nvrtc, "_MODULES", {})
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=5))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    values = cuda_sources.parameters("linear_scan.cu", "LinearParams", {"batch": 2, "chunk": 64})
    names = cuda_sources.fields("linear_scan.cu", "LinearParams")
    for _ in range(2):
        device = torch.device("cuda:0")
        nvrtc.launch(
            "linear_scan.cu", "linear_forward", TINY, (4, 2), 256, values, device, shared=100_000
        )
    code, attribute, first, second = calls
    assert code.startswith(b"code of") and attribute == ("shared", 100_000) and first == second
    assert first[:9] == ("linear_forward", 4, 2, 1, 256, 1, 1, 100_000, 5) and first[-1] == 0
    assert dict(zip(names, first[9]))["batch"] == 2 and dict(zip(names, first[9]))["chunk"] == 64
    with pytest.raises(KeyError, match="no field bach"):
        cuda_sources.parameters("linear_scan.cu", "LinearParams", {"bach": 2})
    driver.cuLaunchKernel = lambda *arguments: (701,)
    with pytest.raises(BackendError, match="starting linear_forward: 701"):
        nvrtc.launch(
            "linear_scan.cu", "linear_forward", TINY, (4, 2), 256, values, device, shared=100_000
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A machine with a GPU, as far as reasons go."""
    machine = SimpleNamespace(capability=(9, 0), driver=13000)
    driver = SimpleNamespace(cuDriverGetVersion=lambda: (0, machine.driver))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: machine.capability)
    monkeypatch.setattr(nvrtc, "_load", lambda: (SimpleNamespace(), driver, ""))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 2))
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90, 100))
    monkeypatch.setattr(nvrtc, "nvrtc_reason", lambda: None)
    nvrtc._device_reason.cache_clear()
    yield machine
    nvrtc._device_reason.cache_clear()


@pytest.mark.parametrize(
    ("capability", "driver", "reason"),
    [
        ((9, 0), 13000, None),
        ((7, 5), 13000, r"NVIDIA Test \(sm_75\) is older than the sm_80"),
        (
            (12, 9),
            13000,
            r"NVRTC 13.2 does not know NVIDIA Test \(sm_129\).*install a newer PyTorch",
        ),
        (
            (9, 0),
            12080,
            r"driver is too old: it serves CUDA 12.8.*13.2 compiles needs 13.0; update the driver",
        ),
    ],
)
def test_reasons_with_a_gpu(
    gpu: SimpleNamespace, capability: Any, driver: int, reason: str | None
) -> None:
    gpu.capability, gpu.driver = capability, driver
    found = nvrtc.device_reason(0)
    available, note = nvrtc.describe()
    if reason is None:
        assert found is None and available and "NVRTC 13.2" in note
    else:
        assert found is not None and re.search(reason, found) and not available and found in note


def test_reasons_without_nvrtc(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for cached in (
        nvrtc._load,
        nvrtc.version,
        nvrtc.architectures,
        nvrtc.nvrtc_reason,
        nvrtc._device_reason,
    ):
        cached.cache_clear()

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    with monkeypatch.context() as patch:
        patch.setattr(nvrtc.importlib, "import_module", missing)
        reason = nvrtc.nvrtc_reason()
        assert reason is not None and "pip install cuda-bindings nvidia-cuda-nvrtc" in reason
        row = next(row for row in availability.describe() if row[0] == "cuda")
        assert not row[1] and "torch finds no CUDA device" in row[2] and "pip install" in row[2]
    for cached in (
        nvrtc._load,
        nvrtc.version,
        nvrtc.architectures,
        nvrtc.nvrtc_reason,
        nvrtc._device_reason,
    ):
        cached.cache_clear()
    assert nvrtc.device_reason(0) is not None


def test_reason_of_a_compiler_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings load, NVRTC itself does not: what the bindings raise then becomes what to
    install."""

    def missing() -> Any:
        raise RuntimeError('Failure finding "libnvrtc.so"')

    monkeypatch.setattr(nvrtc, "_load", lambda: (SimpleNamespace(nvrtcVersion=missing), None, ""))
    cached = (nvrtc.version, nvrtc.architectures, nvrtc.nvrtc_reason)
    for one in cached:
        one.cache_clear()
    reason = nvrtc.nvrtc_reason()
    assert reason is not None and re.search(
        r"does not load .*libnvrtc.*pip install cuda-bindings", reason
    )
    with pytest.raises(BackendError, match="libnvrtc"):
        nvrtc.compile_cubin("linear_scan.cu", TINY, 90)
    for one in cached:
        one.cache_clear()


def test_reason_of_another_makers_gpu(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "built for ROCm" in str(nvrtc.device_reason(0))


def test_reasons_of_tensors() -> None:
    x = torch.ones(1, 2, 3)
    assert cuda_calls.cuda_reason(None, x) == "it runs on CUDA tensors, these are on cpu"
    with pytest.raises(BackendError, match="linear_scan: backend 'cuda' cannot be used"):
        linear_scan.linear_scan(x, x, backend="cuda")


def test_faults_can_be_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """``LONGSEQ_SIMULATE`` gives the message of a machine without NVRTC, or with an old driver."""
    monkeypatch.setattr(nvrtc, "nvrtc_reason", lambda: None)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80, 90))
    monkeypatch.setattr(nvrtc, "_capability", lambda index: 90)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    driver = SimpleNamespace(cuDriverGetVersion=lambda: (0, 13000))
    monkeypatch.setattr(nvrtc, "_load", lambda: (None, driver, ""))
    reason = nvrtc._device_reason.__wrapped__
    assert reason(0) is None
    monkeypatch.setenv("LONGSEQ_SIMULATE", "no-triton,old-driver")
    assert "driver is too old: it serves CUDA 12.0" in reason(0) and nvrtc.simulated("no-triton")
    monkeypatch.undo()
    monkeypatch.setenv("LONGSEQ_SIMULATE", "no-nvrtc")
    assert "LONGSEQ_SIMULATE=no-nvrtc" in nvrtc._load.__wrapped__()[2] and not nvrtc.simulated(
        "old-driver"
    )
