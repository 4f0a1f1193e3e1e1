"""Compiles the CUDA sources at first use with NVRTC, keeps the result on disk, and launches it.

What is compiled depends on the source, the device's architecture, NVRTC's version and the kernel's
numbers (``defines``): together they name the file in the cache folder. An entry is written to a
temporary name and renamed, so several processes may start at once; one that does not carry its own
checksum is compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from longseq.core.errors import BackendError, DataError
from longseq.core.files import atomic_path, cache_dir
from longseq.core.kernels.cuda_sources import source

OLDEST = 80
"""Compute capability (times ten) that the kernels need."""
_MAGIC = b"longseq cubin 1\n"
_INSTALL = "pip install cuda-bindings nvidia-cuda-nvrtc (both come with PyTorch's CUDA wheels)"

Defines = Mapping[str, str | int]


def simulated(fault: str) -> bool:
    """Returns whether the environment asks to behave as a machine with a fault, to see its message.

    Args:
        fault: "no-nvrtc", "old-driver" or "no-triton", listed with commas in ``LONGSEQ_SIMULATE``.
    """
    return fault in os.environ.get("LONGSEQ_SIMULATE", "").split(",")


@cache
def _load() -> tuple[ModuleType | None, ModuleType | None, str]:
    """Returns the bindings of NVRTC and of the driver, and why they are not there."""
    try:
        if simulated("no-nvrtc"):
            raise ImportError("LONGSEQ_SIMULATE=no-nvrtc")
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        return None, None, f"cuda.bindings does not load ({error}): {_INSTALL}"
    return nvrtc, driver, ""


@cache
def nvrtc_reason() -> str | None:
    """Returns why kernels cannot be compiled here, or None: needs no GPU."""
    try:
        version()
        architectures()
    except BackendError as error:
        return str(error)
    return None


def device_reason(index: int) -> str | None:
    """Returns why a CUDA device cannot run the kernels, or None.

    Args:
        index: of the device.
    """
    return _device_reason(index)


# What torch.compiler.assume_constant_result sets. Calling it imports torch's whole compiler, which
# costs every command 1 to 2 s and 160 MB.
device_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _device_reason(index: int) -> str | None:
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and the kernels are CUDA C++"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = _capability(index)
    name = f"{torch.cuda.get_device_name(index)} (sm_{capability})"
    if capability < OLDEST:
        return f"{name} is older than the sm_{OLDEST} that the kernels need"
    reason = nvrtc_reason()
    if reason is not None:
        return reason
    known = architectures()
    if capability not in known:
        return (
            f"NVRTC {_dotted(version())} does not know {name}, only sm_{known[0]} to "
            f"sm_{known[-1]}: "
            "install a newer PyTorch"
        )
    driver = _load()[1]
    assert driver is not None
    newest = _done(driver.cuDriverGetVersion(), "the CUDA driver")
    if simulated("old-driver"):
        newest = 1000 * (version()[0] - 1)
    if newest // 1000 < version()[0]:
        return (
            f"the NVIDIA driver is too old: it serves CUDA "
            f"{newest // 1000}.{newest % 1000 // 10}, and what NVRTC {_dotted(version())} "
            f"compiles needs {version()[0]}.0; update the driver, or install a PyTorch built for "
            f"CUDA {newest // 1000}"
        )
    return None


def describe() -> tuple[bool, str]:
    """Returns whether the kernels can run here, and a note for ``longseq doctor``."""
    reason = nvrtc_reason()
    compiler = "" if reason is not None else f"NVRTC {_dotted(version())}"
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else ": this torch is built without CUDA"
        return (
            False,
            f"torch finds no CUDA device{built}; "
            f"{reason or f'{compiler} is there to compile the kernels'}",
        )
    reasons = [device_reason(index) for index in range(torch.cuda.device_count())]
    if all(reasons):
        return False, "; ".join(dict.fromkeys(str(reason) for reason in reasons))
    return (
        True,
        f"CUDA C++ kernels, compiled at first use by {compiler} and kept in {cache_dir('kernels')}",
    )


def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


def _dotted(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"


def _done(result: tuple[Any, ...], what: str) -> Any:
    """Returns a call's values, or raises what went wrong."""
    error, *values = result
    if int(error) != 0:
        raise BackendError(f"{what}: {getattr(error, 'name', error)}")
    return values[0] if len(values) == 1 else tuple(values)


def _nvrtc() -> ModuleType:
    module, _, reason = _load()
    if module is None:
        raise BackendError(reason)
    return module


@cache
def version() -> tuple[int, int]:
    """Returns NVRTC's version.

    Raises:
        BackendError: if it does not load, with what to install.
    """
    nvrtc = _nvrtc()
    try:
        major, minor = _done(nvrtc.nvrtcVersion(), "NVRTC")
    except (
        RuntimeError,
        OSError,
    ) as error:  # what the bindings raise where the library is not found
        if isinstance(error, BackendError):
            raise
        raise BackendError(f"NVRTC does not load ({error}): {_INSTALL}") from None
    return int(major), int(minor)


@cache
def architectures() -> tuple[int, ...]:
    """Returns the compute capabilities (times ten) that this NVRTC compiles for, ascending."""
    version()
    nvrtc = _nvrtc()
    count = int(_done(nvrtc.nvrtcGetNumSupportedArchs(), "NVRTC"))
    return tuple(sorted(int(one) for one in _done(nvrtc.nvrtcGetSupportedArchs(), "NVRTC")[:count]))


def compile_cubin(name: str, defines: Defines, architecture: int) -> tuple[bytes, str]:
    """Compiles a source for one architecture.

    Args:
        name: the source.
        defines: macros.
        architecture: compute capability times ten, for example 90.

    Returns:
        The machine code, and the compiler's log with the resources that each kernel uses.

    Raises:
        BackendError: with the compiler's message.
    """
    version()
    nvrtc = _nvrtc()
    program = _done(
        nvrtc.nvrtcCreateProgram(source(name).encode(), name.encode(), 0, [], []), "NVRTC"
    )
    options = [
        f"--gpu-architecture=sm_{architecture}".encode(),
        b"--std=c++17",
        b"--ptxas-options=-v",
    ]
    options += [f"-D{key}={value}".encode() for key, value in sorted(defines.items())]
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        text = bytearray(int(_done(nvrtc.nvrtcGetProgramLogSize(program), "NVRTC")))
        _done(nvrtc.nvrtcGetProgramLog(program, text), "NVRTC")
        message = bytes(text).rstrip(b"\0").decode(errors="replace")
        if int(error) != 0:
            raise BackendError(
                f"NVRTC cannot compile {name} for sm_{architecture}: {message.strip()}"
            )
        code = bytearray(int(_done(nvrtc.nvrtcGetCUBINSize(program), "NVRTC")))
        _done(nvrtc.nvrtcGetCUBIN(program, code), "NVRTC")
        return bytes(code), message
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def cache_file(name: str, defines: Defines, architecture: int) -> Path:
    """Returns where the machine code of a source is kept. Arguments as in ``compile_cubin``."""
    parts = [source(name), repr(sorted((key, str(value)) for key, value in defines.items()))]
    key = hashlib.sha256(
        "\0".join([*parts, str(architecture), _dotted(version())]).encode()
    ).hexdigest()
    return cache_dir("kernels") / f"{Path(name).stem}-sm_{architecture}-{key[:24]}.cubin"


def cubin(name: str, defines: Defines, architecture: int) -> bytes:
    """Returns machine code from the cache, compiled where it is not there whole.

    Arguments and errors as in ``compile_cubin``.
    """
    try:
        file = cache_file(name, defines, architecture)
    except DataError:  # nowhere to keep it: compiled once per process then
        return compile_cubin(name, defines, architecture)[0]
    head = len(_MAGIC) + 32
    try:
        stored = file.read_bytes()
    except OSError:  # not there, or not to be read
        stored = b""
    if (
        stored.startswith(_MAGIC)
        and hashlib.sha256(stored[head:]).digest() == stored[len(_MAGIC) : head]
    ):
        return stored[head:]
    code, _ = compile_cubin(name, defines, architecture)
    # The kernel runs all the same where it cannot be kept: on a full disk, say.
    with contextlib.suppress(OSError, DataError), atomic_path(file) as temporary:
        temporary.write_bytes(_MAGIC + hashlib.sha256(code).digest() + code)
    return code


class _Loaded:
    """A module on one device, and its kernels."""

    def __init__(self, code: bytes) -> None:
        driver = _load()[1]
        assert driver is not None
        self.driver = driver
        self.module = _done(driver.cuModuleLoadData(code), "loading a kernel")
        self.kernels: dict[tuple[str, int], Any] = {}

    def kernel(self, name: str, shared: int) -> Any:
        if (name, shared) not in self.kernels:
            function = _done(
                self.driver.cuModuleGetFunction(self.module, name.encode()), f"kernel {name}"
            )
            if shared > 48 * 1024:
                attribute = (
                    self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                )
                _done(
                    self.driver.cuFuncSetAttribute(function, attribute, shared),
                    f"kernel {name}'s memory",
                )
            self.kernels[name, shared] = function
        return self.kernels[name, shared]


_MODULES: dict[tuple[int, str, tuple[tuple[str, str | int], ...]], _Loaded] = {}


def launch(
    name: str,
    kernel: str,
    defines: Defines,
    grid: Sequence[int],
    threads: int,
    arguments: ctypes.Array[ctypes.c_int64],
    device: torch.device,
    shared: int = 0,
) -> None:
    """Starts a kernel on torch's current stream.

    Args:
        name: the source.
        kernel: its name in the source.
        defines: macros.
        grid: blocks, up to three numbers.
        threads: of a block.
        arguments: from ``parameters``.
        device: where the arguments' memory is.
        shared: bytes of dynamic shared memory of a block.

    Raises:
        BackendError: if it cannot be compiled, loaded or started.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    with torch.cuda.device(index):
        stream = torch.cuda.current_stream(index).cuda_stream
        key = (index, name, tuple(sorted(defines.items())))
        driver = _load()[1]
        assert driver is not None
        # A thread that torch has not used yet.
        if int(_done(driver.cuCtxGetCurrent(), "the CUDA context")) == 0:
            context = _done(
                driver.cuDevicePrimaryCtxRetain(driver.CUdevice(index)), "the CUDA context"
            )
            _done(driver.cuCtxSetCurrent(context), "the CUDA context")
        if key not in _MODULES:
            _MODULES[key] = _Loaded(cubin(name, defines, _capability(index)))
        function = _MODULES[key].kernel(kernel, shared)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        blocks = [*grid, 1, 1][:3]
        result = driver.cuLaunchKernel(
            function,
            *blocks,
            threads,
            1,
            1,
            shared,
            driver.CUstream(stream),
            ctypes.addressof(pointers),
            0,
        )
        _done(result, f"starting {kernel}")
