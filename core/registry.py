"""What is chosen by name: mixers, models, baselines; an unknown name is answered with the nearest
one."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from longseq.core import plugins
from longseq.core.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names of one kind of thing, in the order of their registration.

    Args:
        kind: of thing, for messages: "mixer", "model", "baseline".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Adds a thing under a name.

        Args:
            name: usual one, in lower snake case.
            thing: a class, function or preset; one of the same qualified name is replaced (a
                reload).

        Raises:
            ConfigError: if the name is taken.
        """
        taken = self._things.get(name, thing)
        if _identity(taken) != _identity(thing):
            owner = owner_of(taken)
            by = f", by {owner}" if owner is not None else ""
            raise ConfigError(f"a {self.kind} named {name!r} is registered already{by}")
        if name not in self._things:
            plugins.remember(str(owner_of(thing)), lambda: self._things.pop(name, None))
        self._things[name] = thing

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that adds a class or function.

        Args:
            name: as in ``add``.
        """

        def decorate(thing: Any) -> Any:
            self.add(name, thing)
            return thing

        return decorate

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            plugins.load_installed()
        if name not in self._things:
            near = did_you_mean(name, self._things)
            own = "; one of your own needs --import its_module" if near.startswith("known") else ""
            raise ConfigError(f"no {self.kind} named {name!r}; {near}{own}")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def names(self, pattern: str = "*") -> list[str]:
        """Returns the names that match a shell pattern, sorted.

        Args:
            pattern: for example ``"vim*"``.
        """
        return sorted(fnmatch.filter(self._things, pattern))


def owner_of(thing: Any) -> str | None:
    """Returns the module in which a class, function or preset's class is defined, if it says so."""
    owner = getattr(thing.cls if isinstance(thing, Preset) else thing, "__module__", None)
    return owner if isinstance(owner, str) else None


def _identity(thing: Any) -> Any:
    """Returns where a class or function is defined, the same after a reload; anything else as it
    is."""
    name = getattr(thing, "__qualname__", None)
    return thing if name is None else (thing.__module__, name)


@dataclass(frozen=True)
class Preset:
    """A named model.

    Args:
        cls: the class.
        kwargs: its hyper-parameters where they differ from the defaults.
        help: one line.
    """

    cls: Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    help: str = ""

    def create(self, name: str, **kwargs: Any) -> Any:
        """Makes the model.

        Args:
            name: of the preset, for messages.
            **kwargs: hyper-parameters in place of the preset's.

        Raises:
            ConfigError: for an unknown hyper-parameter, with the nearest one.
        """
        check_keywords(f"model {name!r}", self.cls, kwargs)
        return self.cls(**{**self.kwargs, **kwargs})


def keywords(function: Callable[..., Any]) -> list[str]:
    """Returns the names of the arguments that a class or function takes."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def check_keywords(what: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Checks that a class or function takes the keyword arguments.

    Args:
        what: for the message, for example "mixer 'mamba'".
        function: the class or function.
        kwargs: by name.

    Raises:
        ConfigError: naming the first that it does not take, with the nearest one that it does.
    """
    accepted = keywords(function)
    for key in kwargs:
        if key not in accepted:
            raise ConfigError(
                f"{what} has no hyper-parameter {key!r}; {did_you_mean(key, accepted)}"
            )


def check_numbers(what: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Checks that arguments which a class or function declares as numbers are none of text or
    lists, as a configuration may have them (``1e-3`` is text in YAML, ``1.0e-3`` a number).

    Args:
        what: for the message, for example "mixer 'mamba'".
        function: the class or function.
        kwargs: by name.

    Raises:
        ConfigError: naming the first that is not a number.
    """
    parameters = inspect.signature(function).parameters
    for key, value in kwargs.items():
        declared = parameters[key].annotation if key in parameters else None
        if declared in (int, float, "int", "float") and isinstance(value, (str, list, dict)):
            kind = declared if isinstance(declared, str) else declared.__name__
            text = "a whole number" if kind == "int" else "a number"
            raise ConfigError(f"{what}: {key} must be {text}, got {value!r}")
