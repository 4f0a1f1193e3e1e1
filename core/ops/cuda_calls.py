"""How calls reach the CUDA kernels: which calls they take, dtypes as macros, addresses and
strides."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc

TYPES = {
    torch.float32: "float",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.complex64: "c32",
}
"""The kernels' name of a dtype."""


def cuda_reason(*tensors: Tensor | None) -> str | None:
    """Returns why the CUDA kernels cannot take these tensors, or None if they can.

    Args:
        *tensors: the call's arguments; None stands for an absent one.
    """
    there = [tensor for tensor in tensors if tensor is not None]
    for tensor in there:
        if tensor.device.type != "cuda":
            return f"it runs on CUDA tensors, these are on {tensor.device}"
    for tensor in there:
        if tensor.dtype not in TYPES:
            return f"it computes in float32, and an argument is {tensor.dtype}"
    index = there[0].device.index
    return nvrtc.device_reason(torch.cuda.current_device() if index is None else index)


@cache
def multiprocessors(device: torch.device) -> int:
    """Returns how many multiprocessors a device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def dense(tensor: Tensor) -> Tensor:
    """Returns the tensor with every dimension after the second dense; earlier strides are kept."""
    tensor = tensor.resolve_conj()
    expected = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:])):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def parameter(tensor: Tensor | None) -> Tensor | None:
    """Returns a parameter or state dense in float32 or complex64."""
    if tensor is None:
        return None
    dtype = torch.complex64 if tensor.is_complex() else torch.float32
    return tensor.to(dtype).contiguous().resolve_conj()


def flags(resets: Tensor | None) -> Tensor | None:
    """Returns resets as dense bytes."""
    return None if resets is None else resets.to(torch.uint8).contiguous()


def rows(**named: Tensor | None) -> dict[str, int]:
    """Returns name, name_b and name_t: address, batch and time stride of tensors that ``dense``
    returned."""
    values: dict[str, int] = {}
    for name, tensor in named.items():
        if tensor is not None:
            values |= {
                name: tensor.data_ptr(),
                f"{name}_b": tensor.stride(0),
                f"{name}_t": tensor.stride(1),
            }
    return values


def addresses(**named: Tensor | None) -> dict[str, int]:
    """Returns the addresses of dense tensors, without absent ones."""
    return {name: tensor.data_ptr() for name, tensor in named.items() if tensor is not None}


def type_of(tensor: Tensor | None) -> str:
    """Returns the kernels' name of a tensor's dtype; "float" for an absent tensor."""
    return "float" if tensor is None else TYPES[tensor.dtype]


def split(length: int, blocks: int, tile: int, device: torch.device) -> tuple[int, int]:
    """Returns into what chunks a sequence is split so that a device is filled: positions per chunk,
    and chunks.

    A split costs a second pass over the inputs, so one that would not at least treble the blocks is
    not made.

    Args:
        length: positions.
        blocks: without a split.
        tile: positions that a block handles at a time; a chunk is at least eight tiles.
        device: to be filled with three blocks per multiprocessor.
    """
    chunks = min(3 * multiprocessors(device) // max(blocks, 1), length // (8 * tile))
    if chunks < 3:
        return max(length, 1), 1
    chunk = math.ceil(length / chunks / tile) * tile
    return chunk, math.ceil(length / chunk)
