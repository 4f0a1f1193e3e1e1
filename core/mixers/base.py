"""The mixer contract: what every sequence mixer takes, returns and promises; and the registry of
names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers.guard import guarded_forward, guarded_step
from longseq.core.registry import Registry, check_numbers

State = dict[str, Tensor]
"""A mixer's carried state: named tensors whose first dimension is the batch."""

_FAR = 1 << 40  # positions, more than anybody has


class Mixer(nn.Module, ABC):
    """A map from (B, L, D) to (B, L, D) that can be run whole, in chunks, or one position at a
    time.

    The laws that every causal mixer obeys, and that ``longseq.core.testing.check_mixer`` checks:

    1. ``forward(x) = concat(forward(x[:k]), forward(x[k:], state))`` for every k, gradients
        included;
    2. ``forward(x)`` = stepping through x;
    3. changing ``x[t:]`` leaves ``y[:t]`` as it was;
    4. a row's output does not depend on its neighbours in the batch;
    5. packed sequences (``segment_ids``) = the sequences run one by one;
    6. the gradient reaches the initial state, and the final state is differentiable;
    7. a value that is not finite reaches no output before it and no other sequence;
    8. padding changes nothing: ``attention_mask`` or ``lengths`` = the real positions alone;
    9. no rows or no positions give an empty output, zero gradients and the state as it was;
    10. on the meta device shapes are inferred, and nothing is computed;
    11. a module put in the place of a submodule, such as an adapter, is called, or refused by name;
    12. ``torch.export`` takes a length that is left open, or the mixer refuses it by name.

    ``forward`` and ``step`` of a subclass are wrapped (``longseq.core.mixers.guard``): laws 7, 8
    and 9 and the checks of the input are kept there once for all mixers, and ``forward`` gains

    - ``attention_mask``: bool or integer (B, L), 0 at padding, which may lie anywhere; or
    - ``lengths``: integers (B,), the number of real positions of each row, its first ones.

    A state must have the names, shapes and kinds of what ``init_state`` returns (those of a history
    with any number of positions); another is refused by name.

    Outputs at padding are zero, and each row's state is that after its last real position.

    Attributes:
        causal: whether position t sees only positions up to t; of the class, or of an instance
            where an option decides. Laws 1, 2, 3, 5, 6 and 8's states hold for causal mixers.
        finite_state: whether the state's size is independent of how many positions were seen.
        ssm_parameters: names, relative to the mixer, of parameters that take the learning rate of
            state-space parameters and no weight decay.
        closed_length: why ``torch.export`` cannot leave the length open, such as a loop over
            positions; None where it can. Exporting with an open length is then refused with it.
    """

    causal: bool = True
    finite_state: ClassVar[bool] = True
    ssm_parameters: ClassVar[tuple[str, ...]] = ()
    closed_length: ClassVar[str | None] = None

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = check_positive("d_model", d_model)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.forward = guarded_forward(cls.forward)  # type: ignore[method-assign]
        if "step" in cls.__dict__:
            cls.step = guarded_step(cls.step)  # type: ignore[method-assign]

    @abstractmethod
    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one.

        Args:
            x: input (B, L, D). A subclass's own code is never given B = 0 or L = 0.
            state: what the previous chunk returned; None stands for the start of a sequence.
            segment_ids: integers (B, L), constant inside a packed sequence; wherever the id changes
                from one position to the next, the state is reset. Position 0 continues ``state``.

        Returns:
            The output (B, L, D) and the state after the last position.
        """

    @guarded_step
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Mixes one position.

        Args:
            x_t: input (B, D).
            state: from ``init_state``, ``forward`` or the previous ``step``; None stands for the
                start of a sequence. A subclass's own code is never given None.

        Returns:
            The output (B, D) and the new state.
        """
        y, state = self(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    @abstractmethod
    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the state at the start of a sequence.

        Args:
            batch: number of rows.
            device: where; the parameters' device if None.
            dtype: of activations kept in the state; the parameters' dtype if None. Recurrent states
                are at least float32 whatever is asked.
        """

    def state_size(self, length: int) -> int:
        """Returns the number of values that one row carries after ``length`` positions.

        Args:
            length: positions seen.
        """
        if not self.finite_state:
            raise NotImplementedError(
                f"{type(self).__name__} carries its history and must define state_size"
            )
        return sum(value[0].numel() for value in self.init_state(1, device="cpu").values())

    @property
    def bounded_state(self) -> bool:
        """Whether the state stops growing: of a finite size, or a history with an end."""
        if not self.causal or self.finite_state:
            return self.causal
        try:
            return self.state_size(_FAR) == self.state_size(2 * _FAR)
        except NotImplementedError:
            return False

    def join_states(self, states: Sequence[State]) -> State:
        """Returns the states of all rows of several batches, one batch after the other.

        Histories that differ in length are filled up with zeros on the left, before their start.

        Args:
            states: at least one.
        """
        joined: State = {}
        for key in states[0]:
            parts = [state[key] for state in states]
            if parts[0].dim() > 1:
                longest = max(part.shape[1] for part in parts)
                parts = [fill_left(part, longest) for part in parts]
            joined[key] = torch.cat(parts)
        return joined

    def _where(
        self, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> tuple[torch.device | str, torch.dtype]:
        """Returns device and dtype with the parameters' own in place of None; a quantised mixer may
        have integers among them, or none at all: then torch's defaults."""
        numbers = (p for p in self.parameters() if p.is_floating_point() or p.is_complex())
        like: Tensor | None = next(numbers, None)
        like = torch.empty(0) if like is None else like
        return (like.device if device is None else device), (like.dtype if dtype is None else dtype)


def fill_left(value: Tensor, length: int) -> Tensor:
    """Returns a history (B, T, …) with zeros before it, (B, length, …)."""
    missing = length - value.shape[1]
    if not missing:
        return value
    return torch.cat([value.new_zeros(value.shape[0], missing, *value.shape[2:]), value], 1)


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which a recurrent state is kept: float64 for float64, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def segment_resets(segment_ids: Tensor | None) -> Tensor | None:
    """Returns a bool tensor (B, L), true where a new segment begins; position 0 is never a reset.

    Args:
        segment_ids: integers (B, L), or None.
    """
    if segment_ids is None:
        return None
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    return torch.nn.functional.pad(changed, (1, 0), value=False)


MIXERS: Registry[type[Mixer]] = Registry("mixer")
M = TypeVar("M", bound=type[Mixer])


def register_mixer(name: str) -> Callable[[M], M]:
    """Class decorator that makes a mixer available to ``create_mixer`` under ``name``.

    Args:
        name: the paper's usual name in lower snake case.

    Raises:
        ConfigError: if it is no such name or taken, or what is decorated is no mixer.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        what, example = getattr(name, "__name__", name), '@register_mixer("mine")'
        raise ConfigError(
            f"register_mixer needs a name in lower snake case, as in {example}, got {what!r}"
        )

    def register(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, Mixer)):
            raise ConfigError(
                f"register_mixer({name!r}): {getattr(cls, '__name__', cls)} is no Mixer"
            )
        if not cls.__module__.startswith("longseq.core.mixers."):
            _load_all()  # so that a name of ours is known to be taken
        MIXERS.add(name, cls)
        return cls

    return register


def is_registered(cls: type) -> bool:
    """Returns whether a class is registered as a mixer."""
    return cls in MIXERS.values()


def _load_all() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"longseq.core.mixers.{module.name}")


def list_mixers() -> list[str]:
    """Returns the names of all mixers, sorted."""
    _load_all()
    return MIXERS.names()


def mixer_class(name: str) -> type[Mixer]:
    """Returns the class registered under ``name``.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    if name not in MIXERS:
        _load_all()
    return MIXERS[name]


def create_mixer(name: str, d_model: int, **kwargs: Any) -> Mixer:
    """Makes a mixer by name.

    Args:
        name: one of ``list_mixers()``.
        d_model: width D.
        **kwargs: the mixer's own hyper-parameters.

    Raises:
        ConfigError: for an unknown name or hyper-parameter, with the nearest valid one.
    """
    return construct(mixer_class(name), d_model, kwargs, name)


def construct(
    cls: type[Mixer], d_model: int, kwargs: Mapping[str, Any], name: str | None = None
) -> Mixer:
    """Makes a mixer of a class.

    Args:
        cls: the class.
        d_model: width D.
        kwargs: its hyper-parameters.
        name: of the mixer, for the message; the class's if None.

    Raises:
        ConfigError: for an unknown hyper-parameter, with the nearest valid one, for text where a
            number is declared, and for a class that does not initialise its base or lacks a
            method, or whose forward takes other arguments.
    """
    accepted = [
        p for p in inspect.signature(cls.__init__).parameters if p not in ("self", "d_model")
    ]
    for key in kwargs:
        if key not in accepted:
            near = did_you_mean(key, accepted)
            raise ConfigError(
                f"mixer {(name or cls.__name__)!r} has no hyper-parameter {key!r}; {near}"
            )
    check_numbers(f"mixer {(name or cls.__name__)!r}", cls.__init__, kwargs)
    what = f"mixer {(name or cls.__name__)!r} ({cls.__module__}.{cls.__qualname__})"
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"{what}: defines no {' and no '.join(missing)}")
    try:
        inspect.signature(cls.forward).bind(None, None, None, None)
    except TypeError:
        takes = ", ".join(inspect.signature(cls.forward).parameters)
        raise ConfigError(
            f"{what}: forward takes ({takes}), where every mixer's takes "
            "(self, x, state=None, segment_ids=None)"
        ) from None
    try:
        return cls(d_model, **kwargs)
    except AttributeError as error:  # of torch, which knows no better
        if "before Module.__init__() call" not in str(error):
            raise
        raise ConfigError(
            f"{what}: its __init__ must call super().__init__(d_model) before it sets anything"
        ) from error
