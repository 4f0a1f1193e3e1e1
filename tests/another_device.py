"""A device that is not the CPU, for machines without one: its tensors compute on the CPU, say that
they lie elsewhere, and refuse to meet tensors that were left on the CPU.

Where no GPU is at hand this is what finds a tensor that a module or a loss makes on the wrong
device. It rests on interfaces that torch calls experimental, and changes functions of torch: use
it in a process of its own. Parameters that two modules share are two after ``to(device)``, unlike
on a GPU, as tensors that wrap others cannot be changed in place.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils import backend_registration
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from longseq.core.ops import arguments

NAME = "elsewhere"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
"""Whether this version of torch can have a device that is written in Python."""

_aten = torch.ops.aten
_BETWEEN_DEVICES = {_aten._to_copy.default, _aten.copy_.default, _aten.lift_fresh.default}
# As on a GPU, indices may lie on the CPU.
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}


class MixedDevices(RuntimeError):
    """Tensors of two devices in one operation."""


class Elsewhere(torch.Tensor):
    """A tensor of the other device; ``inner`` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        inner = inner.detach().resolve_conj().resolve_neg()
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(self._with_lists_here(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(self._with_lists_here(index), value)

    def _with_lists_here(self, index: Any) -> Any:
        # torch would make a tensor of a list where the dispatcher does not come by.
        if isinstance(index, tuple):
            return tuple(self._with_lists_here(one) for one in index)
        return torch.tensor(index, device=self.device) if isinstance(index, list) else index

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    here = [one for one in tensors if isinstance(one, Elsewhere)]
    left = [one for one in tensors if not isinstance(one, Elsewhere) and one.dim() > 0]
    if here and left and op not in _BETWEEN_DEVICES | _INDEXING:
        raise MixedDevices(f"{op}: {[(tuple(one.shape), one.device.type) for one in tensors]}")
    device = kwargs.get("device")
    elsewhere = bool(here) if device is None else torch.device(device).type == NAME
    if op is _aten.copy_.default:
        elsewhere = isinstance(args[0], Elsewhere)

    def inner(one: Any) -> Any:
        return one.inner if isinstance(one, Elsewhere) else one

    inside = {name: tree_map(inner, one) for name, one in kwargs.items() if name != "pin_memory"}
    if device is not None and elsewhere:
        inside["device"] = torch.device("cpu")
    out = op(*tree_map(inner, args), **inside)
    if not elsewhere:
        return out
    out = tree_map(lambda one: Elsewhere(one) if isinstance(one, torch.Tensor) else one, out)
    if here and any(one.alias_info is not None for one in op._schema.returns):
        return return_and_correct_aliasing(op, args, kwargs, out)
    return out


class _InferenceMode(contextlib.ContextDecorator):
    # Tensors that wrap others cannot be inference tensors.
    def __init__(self, mode: bool = True) -> None:
        self.inside = torch.no_grad() if mode else contextlib.nullcontext()

    def __enter__(self) -> None:
        self.inside.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inside.__exit__(*error)


def _made_here(name: str) -> None:
    """Lets a function that fills a tensor of its own, past the dispatcher, fill one of the CPU."""
    function = getattr(torch, name)

    def changed(
        *args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        if device is None:
            stack = _get_current_function_mode_stack()
            device = next(
                (one.device for one in reversed(stack) if isinstance(one, DeviceContext)), "cpu"
            )
        if torch.device(device).type == NAME:
            made = function(*args, device="cpu", **kwargs).to(device)
        else:
            made = function(*args, device=device, **kwargs)
        return made.requires_grad_() if requires_grad else made

    setattr(torch, name, changed)


_kept: list[torch.library.Library] = []


def begin() -> torch.device:
    """Registers the device in this process, and returns it."""

    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    _kept.append(torch.library.Library("_", "IMPL"))
    _kept[-1].fallback(_run, "PrivateUse1")
    for name in ("arange", "as_tensor", "eye", "linspace", "randperm", "tensor", "tril_indices"):
        _made_here(name)

    def new_tensor(self: torch.Tensor, data: Any, dtype: Any = None, device: Any = None) -> Any:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    torch.Tensor.new_tensor = new_tensor  # type: ignore[method-assign, assignment]
    torch.inference_mode = _InferenceMode  # type: ignore[misc, assignment]
    save = torch.save

    def save_values(content: Any, *args: Any, **kwargs: Any) -> None:
        values = tree_map(lambda x: x.detach().inner if isinstance(x, Elsewhere) else x, content)
        save(values, *args, **kwargs)

    torch.save = save_values
    # These tensors hold values, so that Python may look at them.
    arguments._PLAIN = (*arguments._PLAIN, Elsewhere)  # type: ignore[misc, assignment]
    return torch.device(NAME, 0)
