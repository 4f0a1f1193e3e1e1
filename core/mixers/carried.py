"""What a mixer's carried state must be: the names, shapes and kinds of what ``init_state``
returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.mixers.finite import State

_OPTIONAL = "seen"  # positions of a history that are a row's own, where rows differ
_KEPT = "_carried_entries"


class Entry(NamedTuple):
    """One tensor of a state.

    Attributes:
        shape: behind the batch; the number of positions first where ``history``.
        history: whether it holds what positions there have been, any number of them.
        recurrent: whether it is kept in float32 at least.
        kind: 0 for integers and bools, 1 for real numbers, 2 for complex ones.
    """

    shape: tuple[int, ...]
    history: bool
    recurrent: bool
    kind: int


def _kind(dtype: torch.dtype) -> int:
    return 2 if dtype.is_complex else int(dtype.is_floating_point)


def _entries(mixer: Any) -> dict[str, Entry]:
    low = mixer.init_state(1, torch.device("meta"), torch.bfloat16)
    return {
        name: Entry(
            tuple(value.shape[1:]),
            not mixer.finite_state and value.dim() > 1 and value.shape[1] == 0,
            value.dtype != torch.bfloat16,
            _kind(value.dtype),
        )
        for name, value in low.items()
    }


def check_state(mixer: Any, x: Tensor, state: State) -> None:
    """Refuses a state that is not one of this mixer for this input.

    The tensors' shapes are compared with those that the mixer gave when it was first asked, so that
    a step costs a microsecond or two more.

    Args:
        mixer: whose.
        x: input (B, L, D) or (B, D).
        state: what was given for its state.

    Raises:
        ArgumentError: naming the entry, what was expected and what came.
    """
    if type(state) is not dict or not mixer.causal:
        if not isinstance(state, dict):
            _refuse(mixer, f"the state must be a dict of tensors, got {type(state).__name__}")
        if not mixer.causal:
            return
    entries: dict[str, Entry] | None = mixer.__dict__.get(_KEPT)
    if entries is None:
        entries = _entries(mixer)
        if not torch.compiler.is_compiling():
            mixer.__dict__[_KEPT] = entries
    if not _fits(x, state, entries):
        mixer.__dict__.pop(_KEPT, None)  # of a mixer that has been changed since
        _explain(mixer, x, state, _entries(mixer))


def _fits(x: Tensor, state: State, entries: dict[str, Entry]) -> bool:
    """Returns whether all is as it should be, quickly."""
    batch, wide = x.shape[0], x.dtype == torch.float64
    for name, entry in entries.items():
        value = state.get(name)
        if not isinstance(value, Tensor):
            return False
        shape, dtype = value.shape, value.dtype
        if shape[0] != batch or (shape[2:] if entry.history else shape[1:]) != (
            entry.shape[1:] if entry.history else entry.shape
        ):
            return False
        if dtype == torch.float32 and entry.kind == 1 and not wide:
            continue
        if _wrong_dtype(dtype, entry, wide):
            return False
    return len(state) == len(entries) or all(_known(name, entries) for name in state)


def _known(name: str, entries: dict[str, Entry]) -> bool:
    if name in entries:
        return True
    head, dot, last = name.rpartition(".")
    beside = any(key.startswith(head + dot) and one.history for key, one in entries.items())
    return last == _OPTIONAL and beside


def _wrong_dtype(dtype: torch.dtype, entry: Entry, wide: bool) -> bool:
    if _kind(dtype) != entry.kind:
        return True
    if not entry.kind:
        return False
    if (dtype in (torch.float64, torch.complex128)) != wide:
        return True
    return entry.recurrent and dtype in (torch.bfloat16, torch.float16)


def _refuse(mixer: Any, what: str) -> None:
    raise ArgumentError(f"{type(mixer).__name__}: {what}")


def _explain(mixer: Any, x: Tensor, state: State, entries: dict[str, Entry]) -> None:
    """Raises what is wrong with a state, if anything is."""
    missing = [name for name in entries if name not in state]
    foreign = [name for name in state if not _known(name, entries)]
    if missing or foreign:
        lacks = f"lacks {', '.join(map(repr, missing))}" if missing else ""
        has = f"has {', '.join(map(repr, foreign))}, which it does not know" if foreign else ""
        both = " and ".join(part for part in (lacks, has) if part)
        _refuse(mixer, f"the state {both}: take it from init_state, forward or step of this mixer")
    batch, wide = x.shape[0], x.dtype == torch.float64
    for name, entry in entries.items():
        value = state[name]
        if not isinstance(value, Tensor):
            _refuse(mixer, f"the state {name!r} must be a tensor, got {type(value).__name__}")
        if value.dim() and value.shape[0] != batch:
            _refuse(mixer, f"the state {name!r} is that of {value.shape[0]} rows, x has {batch}")
        wanted = (
            batch,
            *("positions" if i == 0 and entry.history else n for i, n in enumerate(entry.shape)),
        )
        got = tuple(value.shape)
        if len(got) != len(wanted) or any(
            isinstance(n, int) and n != m for n, m in zip(wanted, got)
        ):
            said = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
            _refuse(mixer, f"the state {name!r} must have shape ({said}), got {got}")
        if _wrong_dtype(value.dtype, entry, wide):
            kinds = ("an integer or bool", "a real", "a complex")
            width = ("", " of double precision" if wide else " of single precision")[entry.kind > 0]
            least = ", at least float32" if entry.recurrent and not wide and entry.kind else ""
            _refuse(
                mixer,
                f"the state {name!r} must be {kinds[entry.kind]} tensor{width}{least} for x of "
                f"{x.dtype}, got {value.dtype}",
            )
