"""How tensors reach the compiled kernels: dtype codes, pointers, strides, argument checks, autocast rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.backends import native

_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_COMPLEX = (torch.complex64, torch.complex128)
_NULL = (0, 0, 0, 0)
Arg = tuple[int, int, int, int]


def present(**named: Tensor | None) -> dict[str, Tensor]:
    """Returns the optional arguments that are there."""
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def check_kind(operator: str, real: bool, **named: Tensor) -> None:
    """Checks that arguments are tensors of a dtype that the operators take.

    Args:
        operator: name for the message.
        real: whether complex dtypes are refused.
        **named: the arguments.

    Raises:
        ArgumentError: naming the argument, what was expected and what came.
    """
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _CODES and tensor.dtype not in _COMPLEX:
            raise ArgumentError(
                f"{operator}: {name} must be floating-point (float32, float64, bfloat16, float16"
                f"{'' if real else ', complex64, complex128'}), got {tensor.dtype}"
            )
        if real and tensor.is_complex():
            raise ArgumentError(f"{operator}: {name} must be real, got {tensor.dtype}")


def check(operator: str, name: str, tensor: Tensor, shape: Sequence[int], meaning: str) -> None:
    """Checks an argument's shape and that it is a floating-point or complex tensor.

    Raises:
        ArgumentError: naming the argument, what was expected and what came.
    """
    check_kind(operator, False, **{name: tensor})
    if tuple(tensor.shape) != tuple(shape):
        raise ArgumentError(
            f"{operator}: {name} must have shape {tuple(shape)} = {meaning}, got {tuple(tensor.shape)}"
        )


def check_resets(operator: str, resets: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Returns the resets as bool, after checking that they are a bool or integer tensor (batch, length).

    Raises:
        ArgumentError: if they are not.
    """
    if resets is None:
        return None
    if not isinstance(resets, Tensor):
        raise ArgumentError(f"{operator}: resets must be a bool tensor, got {type(resets).__name__}")
    if resets.is_floating_point() or resets.is_complex():
        raise ArgumentError(f"{operator}: resets must be bool, got {resets.dtype}")
    if tuple(resets.shape) != (batch, length):
        raise ArgumentError(
            f"{operator}: resets must have shape {(batch, length)} = (batch, length), "
            f"got {tuple(resets.shape)}"
        )
    return resets.bool()


def check_device(operator: str, first: Tensor, named: dict[str, Tensor | None]) -> None:
    """Checks that all arguments are where the first one is.

    Raises:
        ArgumentError: naming the argument that is elsewhere.
    """
    for name, tensor in named.items():
        if tensor is not None and tensor.device != first.device:
            raise ArgumentError(
                f"{operator}: {name} must be on {first.device} like the input, got {tensor.device}"
            )


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Returns float64 if any argument is float64 (or complex128), else float32."""
    wide = (torch.float64, torch.complex128)
    return torch.float64 if any(t is not None and t.dtype in wide for t in tensors) else torch.float32


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
    if tensor.is_complex() or tensor.stride(1) != 1 or tensor.is_neg():
        return dense(tensor)
    expected = tensor.stride(-1)
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:])):
        if size != 1 and stride != expected:
            return dense(tensor)
        expected *= size
    return tensor


def across(tensor: Tensor | None) -> tuple[int, int, int, int, int]:
    """Returns what ``rows`` does and the channels' stride, of a tensor that ``strided`` returned."""
    if tensor is None:
        return (*_NULL, 1)
    last = 1 if tensor.is_complex() or tensor.shape[-1] == 1 == tensor.dim() - 2 else tensor.stride(-1)
    return (*rows(tensor), last)


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
    """Has memory that is about to be written for the first time laid out in large pages, where it is large.

    The C library takes and returns blocks beyond 32 MB from and to the system at each call; touching them in
    small pages costs more than writing them.

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
    """Returns how many threads a call is worth: torch's number, or 1 where starting a team costs more.

    Args:
        work: inner-loop iterations.
    """
    return torch.get_num_threads() if work >= 1 << 16 else 1


def register_autocast(
    op: Any, lower: Iterable[str], keep: Iterable[str], devices: Iterable[str] = ("CPU", "CUDA")
) -> None:
    """Gives a custom operator its autocast rule.

    Args:
        op: what ``torch.library.custom_op`` returned.
        lower: arguments that are activations and are cast to the autocast dtype.
        keep: arguments (decays, biases, states) that must not be below float32.
        devices: dispatch-key suffixes.
    """
    overload = op._opoverload
    names = [argument.name for argument in overload._schema.arguments]
    lower, keep = set(lower), set(keep)

    def rule(device: str) -> Callable[..., Any]:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

        def kernel(*args: Any) -> Any:
            target = torch.get_autocast_dtype(device.lower())
            cast = []
            for name, value in zip(names, args):
                if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                    if name in lower:
                        value = value.to(target)
                    elif name in keep:
                        value = value.float()
                cast.append(value)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return overload(*cast)

        return kernel

    for device in devices:
        op._lib.impl(op._name, rule(device), f"Autocast{device}")


def in_transform() -> bool:
    """Returns whether the call is inside a torch.func transform (grad, vmap, ...) that is run eagerly."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def transformable(
    op: Any,
    vmap: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Returns a function that calls a custom operator, also inside torch.func transforms.

    The autograd rule of a ``custom_op`` does not work under torch.func.grad (torch 2.15), that of an
    ``autograd.Function`` with ``setup_context`` does; torch.export and torch.compile want the operator.

    Args:
        op: the custom operator.
        vmap: its vmap rule.
        setup: its ``setup_context``; None if it has no derivative.
        backward: its backward rule.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            out = op(*args)
            return tuple(out) if isinstance(out, list) else out

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if setup is not None:
                setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            if backward is None:
                raise RuntimeError(f"{op._name} has no derivative: second derivatives are not supported")
            return backward(ctx, *grads)

    Function.vmap = staticmethod(vmap)  # type: ignore[method-assign]
    op.register_vmap(vmap)

    def call(*args: Any) -> Any:
        return Function.apply(*args) if in_transform() else op(*args)

    return call


def vmap_loop(call: Any, info: Any, in_dims: Sequence[int | None], args: Sequence[Any]) -> Any:
    """Runs an operator once a vmapped sample and stacks its output, or each of them, along dimension 0."""
    runs = [
        call(*[v if d is None else v.select(d, i) for v, d in zip(args, in_dims)])
        for i in range(info.batch_size)
    ]
    if isinstance(runs[0], Tensor):
        return torch.stack(runs)
    return tuple(torch.stack(column) for column in zip(*runs))


def vmap_fold(
    call: Any, batched: Sequence[int], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> Any:
    """Folds vmap into the batch where only per-row arguments are vmapped; loops over the samples otherwise.

    Args:
        call: the operator; the first dimension of its outputs is the batch, or they are empty.
        batched: indices of arguments whose first dimension is the batch.
        info: vmap's, with ``batch_size``.
        in_dims: vmap's, one per argument.
        args: the arguments.

    Returns:
        The operator's output, or a tuple of them, the vmapped samples along dimension 0.
    """
    size = info.batch_size
    if any(in_dims[i] is not None for i in range(len(args)) if i not in batched):
        return vmap_loop(call, info, in_dims, args)

    def fold(value: Any, dim: int | None) -> Any:
        if value is None:
            return None
        value = value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        return value.flatten(0, 1)

    def unfold(value: Tensor) -> Tensor:
        if value.dim() == 1:  # an absent output
            return value.expand(size, *value.shape)
        return value.view(size, value.shape[0] // size, *value.shape[1:])

    out = call(*[fold(v, in_dims[i]) if i in batched else v for i, v in enumerate(args)])
    return unfold(out) if isinstance(out, Tensor) else tuple(unfold(t) for t in out)
