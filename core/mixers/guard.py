"""What every mixer's ``forward`` and ``step`` pass through before the mixer's own: checks, empty
input, padding, and values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, wraps
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from longseq.core.errors import ArgumentError
from longseq.core.mixers.carried import check_state
from longseq.core.mixers.finite import State, run_finite
from longseq.core.mixers.padding import Carry, real_positions, run_real
from longseq.core.ops.arguments import readable
from longseq.core.ops.exported import is_open
from longseq.core.ops.precision import autocast_dtype


class Mixer(Protocol):
    """What is asked of a mixer here; ``longseq.core.mixers.base.Mixer`` says what each is."""

    d_model: int
    causal: bool
    closed_length: ClassVar[str | None]

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def init_state(
        self, batch: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> State: ...

    def join_states(self, states: Sequence[State]) -> State: ...


class MixerCarry(Carry[State]):
    """The states of one mixer.

    Args:
        mixer: whose.
    """

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer

    def start(self, batch: int, x: Tensor) -> State:
        return self.mixer.init_state(batch, x.device, x.dtype)

    def select(self, state: State, rows: Tensor) -> State:
        return {key: value[rows] for key, value in state.items()}

    def join(self, states: Sequence[State]) -> State:
        alone = len(states) == 1 or not states[0]  # of a mixer that is not causal there is none
        return states[0] if alone else self.mixer.join_states(states)

    def restart(self, state: State, begins: Sequence[bool]) -> State:
        if not any(begins) or not state:
            return state
        like = next(iter(state.values()))
        start = self.mixer.init_state(1, like.device, None)
        start = {
            key: value.to(state[key].dtype) if key in state else value
            for key, value in start.items()
        }
        rows = [{name: one[i : i + 1] for name, one in state.items()} for i in range(len(begins))]
        return self.mixer.join_states([start if new else row for new, row in zip(begins, rows)])

    def replace(self, state: State, rows: Tensor, by: State) -> State:
        return {
            key: torch.where(rows.view(-1, *[1] * (value.dim() - 1)), by[key], value)
            if key in by and by[key].shape == value.shape
            else value
            for key, value in state.items()
        }


class StackCarry(Carry[list[State]]):
    """The states of a stack of mixers, one after the other; or none, where none are kept.

    Args:
        mixers: of the layers.
    """

    def __init__(self, mixers: Iterable[Mixer]) -> None:
        self.layers = [MixerCarry(mixer) for mixer in mixers]

    def start(self, batch: int, x: Tensor) -> list[State]:
        return [layer.start(batch, x) for layer in self.layers]

    def select(self, state: list[State], rows: Tensor) -> list[State]:
        return [layer.select(one, rows) for layer, one in zip(self.layers, state)]

    def join(self, states: Sequence[list[State]]) -> list[State]:
        return [layer.join(one) for layer, one in zip(self.layers, zip(*states))]

    def restart(self, state: list[State], begins: Sequence[bool]) -> list[State]:
        return [layer.restart(one, begins) for layer, one in zip(self.layers, state)]

    def replace(self, state: list[State], rows: Tensor, by: list[State]) -> list[State]:
        return [layer.replace(a, rows, b) for layer, a, b in zip(self.layers, state, by)]


def _refuse(mixer: Mixer, what: str) -> None:
    raise ArgumentError(f"{type(mixer).__name__}: {what}")


def _check(
    mixer: Mixer, x: Tensor, dims: int, state: State | None, segment_ids: Tensor | None
) -> None:
    """Refuses what does not fit, by name.

    Raises:
        ArgumentError: for another shape or kind than a mixer takes.
    """
    if not isinstance(x, Tensor) or x.dim() != dims or x.shape[-1] != mixer.d_model:
        said = "(batch, length, width)" if dims == 3 else "(batch, width)"
        got: object = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        _refuse(mixer, f"x must be {said} with width d_model = {mixer.d_model}, got {got}")
    if not x.is_floating_point():
        _refuse(mixer, f"x must be floating-point, got {x.dtype}")
    if mixer.closed_length is not None and dims == 3 and is_open(x.shape[1]):
        _refuse(mixer, f"torch.export cannot leave the length open: {mixer.closed_length}")
    if state is not None:
        check_state(mixer, x, state)
    if segment_ids is None:
        return
    if segment_ids.shape != x.shape[:2] or segment_ids.is_floating_point():
        got = f"{segment_ids.dtype}, {tuple(segment_ids.shape)}"
        wanted = tuple(x.shape[:2])
        _refuse(mixer, f"segment_ids must be integers (batch, length) = {wanted}, got {got}")


def _nothing(mixer: Mixer, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Returns what there is for no rows or no positions: gradients are zero, not absent."""
    y = x.clone()
    if torch.is_grad_enabled():
        sums = [(p.real if p.is_complex() else p).sum() for p in mixer.parameters()]
        y = y + 0 * torch.stack([s.to(x.dtype) for s in sums]).sum() if sums else y
    if not mixer.causal:
        return y, {}
    start = mixer.init_state(x.shape[0], x.device, x.dtype) if state is None else state
    return y, start


def _explained(mixer: Mixer, x: Tensor, error: RuntimeError) -> None:
    """Raises an error of ours for one of torch's that comes of an input of another dtype."""
    parameter = next(mixer.parameters(), None)
    if parameter is None or parameter.dtype == x.dtype or autocast_dtype(x) is not None:
        return
    raise ArgumentError(
        f"{type(mixer).__name__}: x is {x.dtype} and the parameters are {parameter.dtype}: "
        "convert one of them, or use torch.autocast"
    ) from error


def guarded_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a mixer's ``forward`` with what all mixers share round it.

    Args:
        forward: of (self, x, state, segment_ids).
    """

    @wraps(forward)
    def guarded(
        self: Mixer,
        x: Tensor,
        state: State | None = None,
        segment_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> Any:
        _check(self, x, 3, state, segment_ids)
        if x.device.type == "meta" and x.shape[0] and x.shape[1]:
            return forward(self, x, state)  # shapes do not depend on what is in a mask
        if attention_mask is not None or lengths is not None:
            real = real_positions(type(self).__name__, x, attention_mask, lengths)
            if x.shape[0] and x.shape[1]:
                whole = partial(guarded, self)
                return run_real(whole, MixerCarry(self), x, state, segment_ids, real)
        if not x.shape[0] or not x.shape[1]:
            return _nothing(self, x, state)
        if not readable(x):
            return forward(self, x, state, segment_ids)
        try:
            # Elsewhere looking would wait for the device; and one position has none before it.
            if x.device.type != "cpu" or (x.shape[1] == 1 and segment_ids is None):
                return forward(self, x, state, segment_ids)
            return run_finite(partial(forward, self), x, state, segment_ids, self.causal)
        except RuntimeError as error:
            _explained(self, x, error)
            raise

    return guarded


def guarded_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a mixer's ``step`` with what all mixers share round it.

    Args:
        step: of (self, x_t, state).
    """

    @wraps(step)
    def guarded(self: Mixer, x_t: Tensor, state: State | None) -> Any:
        _check(self, x_t, 2, state, None)
        if state is None and self.causal:
            state = self.init_state(x_t.shape[0], x_t.device, x_t.dtype)
        if not x_t.shape[0]:
            return _nothing(self, x_t, state)
        try:
            return step(self, x_t, state)
        except RuntimeError as error:
            _explained(self, x_t, error)
            raise

    return guarded
