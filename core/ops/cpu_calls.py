"""How tensors reach the compiled CPU kernels: codes of dtypes, pointers, strides, threads."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import seen_by
from longseq.core.ops.backends import cpu_reason, native

_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_NULL = (0, 0, 0, 0)
Arg = tuple[int, int, int, int]
Wide = tuple[int, int, int, int, int]


def dense(tensor: Tensor) -> Tensor:
    """Returns the tensor with every dimension after the second dense; earlier strides are kept."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    expected = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:])):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def rows(tensor: Tensor | None) -> Arg:
    """Returns (pointer, dtype, batch stride, time stride) of a tensor that ``dense`` returned."""
    if tensor is None:
        return _NULL
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.data_ptr(), _CODES[tensor.dtype], tensor.stride(0), tensor.stride(1)


def strided(tensor: Tensor) -> Tensor:
    """Returns the tensor (B, L, …) as ``across`` takes it: with channels or with time dense.

    Memory of (B, D, L), which other packages use, is read as it lies; anything else is copied.

    Args:
        tensor: (B, L, D) or (B, L, G, N).
    """
    if tensor.dim() == 3 and tensor.stride(2) == 1 and not tensor.is_complex():
        return tensor
    if tensor.is_complex() or tensor.stride(1) != 1 or tensor.is_neg():
        return dense(tensor)
    expected = tensor.stride(-1)
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:])):
        if size != 1 and stride != expected:
            return dense(tensor)
        expected *= size
    return tensor


def strided_as(tensor: Tensor, other: Tensor) -> Tensor:
    """Returns the tensor with time dense if the other's is, and else with channels dense.

    Args:
        tensor: (B, L, D).
        other: of the same shape, as ``strided`` or ``empty_as`` returned it.
    """
    if across(other)[4] == 1:
        return dense(tensor)
    if tensor.stride(1) == 1 and across(strided(tensor))[4] != 1:
        return tensor
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def across(tensor: Tensor | None) -> Wide:
    """Returns what ``rows`` does and the channels' stride, of a tensor that ``strided``
    returned."""
    if tensor is None:
        return (*_NULL, 1)
    if tensor.dim() == 3 and not tensor.is_complex():  # nearly every call
        batch, time, channels = tensor.stride()
        channels = channels if tensor.shape[2] != 1 else 1
        return tensor.data_ptr(), _CODES[tensor.dtype], batch, time, channels
    # A dimension of size 1 may have any stride: what counts is the last one that is longer.
    sizes = zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]))
    last = 1 if tensor.is_complex() else next((stride for size, stride in sizes if size != 1), 1)
    return (*rows(tensor), last)


def anyhow(tensor: Tensor) -> Wide:
    """Returns (pointer, dtype, strides of batch, time and channels) of a real tensor (B, L, D)."""
    batch, time, channels = tensor.stride()
    return tensor.data_ptr(), _CODES[tensor.dtype], batch, time, channels


def empty_as(tensor: Tensor) -> Tensor:
    """Returns new memory for a result (B, L, D): time dense where the tensor's is, on a CPU.

    Args:
        tensor: (B, L, D).
    """
    batch, length, width = tensor.shape
    if tensor.device.type == "cpu" and tensor.stride(1) == 1 and tensor.stride(2) != 1:
        return tensor.new_empty((batch, width, length)).transpose(1, 2)
    return tensor.new_empty(tensor.shape)


def vector(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Returns a parameter dense in the compute dtype (or its complex counterpart)."""
    if tensor is None or (tensor.dtype == dtype and tensor.is_contiguous() and not tensor.is_neg()):
        return tensor
    if tensor.is_complex():
        dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return tensor.to(dtype).contiguous().resolve_conj()


def pointer(tensor: Tensor | None) -> int:
    """Returns the address of a dense tensor, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def fresh(*tensors: Tensor) -> None:
    """Has memory that is about to be written for the first time laid out in large pages, where it
    is large.

    The C library takes and returns blocks beyond 32 MB from and to the system at each call;
    touching them in small pages costs more than writing them.

    Args:
        *tensors: newly allocated, nothing written to them yet.
    """
    for tensor in tensors:
        if tensor.nbytes >= 1 << 25:
            native().advise_huge_pages(tensor.data_ptr(), tensor.nbytes)


def code(dtype: torch.dtype) -> int:
    """Returns the kernels' number of a dtype."""
    return _CODES[dtype]


def threads(work: int) -> int:
    """Returns how many threads a call is worth: torch's number, or 1 where starting a team costs
    more.

    Args:
        work: inner-loop iterations.
    """
    return torch.get_num_threads() if work >= 1 << 16 else 1


def direct_reason(*tensors: Tensor | None, but_autograd: bool = False) -> str | None:
    """Returns why kernels may not be called on these tensors directly, past torch's dispatcher, or
    None.

    At one position the dispatch of a custom operator costs more than the arithmetic. A direct call
    is for those that no autograd, compiler, transform or autocast has to see.

    Args:
        *tensors: the call's arguments, parameters included; None stands for an absent one.
        but_autograd: whether autograd does not count, as where the caller takes gradients itself.
    """
    return seen_by(tensors, but_autograd) or cpu_reason()
