"""Hyper-parameters that travel with a checkpoint: flat, JSON-able, with the class's dotted path."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningDataModule
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from longseq.core.errors import ConfigError


def class_path(cls: type) -> str:
    """Returns the dotted path of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _plain(name: str, value: Any) -> Any:
    """Returns ``value`` as JSON would give it back, tuples as lists.

    Raises:
        ConfigError: if it cannot be written as JSON.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"hyper-parameter {name!r} must be a number, text, list or dict to travel with a "
            f"checkpoint, got {type(value).__name__}"
        ) from error


def constructor_arguments(instance: object) -> dict[str, Any]:
    """Returns what the constructor of the most derived class was called with, defaults included.

    Lightning's own ``save_hyperparameters`` merges the arguments of all classes along the
    inheritance chain, also those that the most derived constructor does not accept: it could not be
    called with them again.

    Args:
        instance: an object whose ``__init__`` is running.
    """
    outermost, frame = None, inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if (
            code.co_name == "__init__"
            and code.co_argcount
            and frame.f_locals[code.co_varnames[0]] is instance
        ):
            outermost = frame
        frame = frame.f_back
    assert outermost is not None, "constructor_arguments is for use inside __init__"
    names, _, keywords, values = inspect.getargvalues(outermost)
    code = outermost.f_code
    keyword_only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    found = {name: values[name] for name in (*names[1:], *keyword_only)}
    return {**found, **(values[keywords] if keywords else {})}


def record_hyper_parameters(
    module: HyperparametersMixin, further: Mapping[str, Any] | None = None
) -> None:
    """Records the constructor's arguments and ``_class_path``; call it in the ``__init__`` of a
    base class.

    A subclass must not assign to its arguments' names before it calls ``super().__init__``.

    Args:
        module: a task or data module under construction.
        further: arguments that the constructor takes but does not name, as they were resolved.

    Raises:
        ConfigError: if an argument is not JSON-able.
    """
    arguments = {**constructor_arguments(module), **(further or {})}
    plain = {name: _plain(name, value) for name, value in arguments.items()}
    plain["_class_path"] = class_path(type(module))
    # The outermost frame: in those of constructors Lightning would look for arguments that are here
    # already, and fail on a signature that names more than its code does.
    outermost = inspect.currentframe()
    while outermost is not None and outermost.f_back is not None:
        outermost = outermost.f_back
    # Both kinds of module have `_class_path`: in the loggers Lightning would reject that as a
    # clash.
    module.save_hyperparameters(
        plain, frame=outermost, logger=not isinstance(module, LightningDataModule)
    )


class BaseData(LightningDataModule):
    """A data module whose constructor arguments travel with the checkpoint; base of every
    domain's."""

    fits: ClassVar[tuple[str, ...]] = ()
    """Arguments of a model that follow from the data, see ``model_arguments``."""

    described_by: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Arguments that name files, and those that say something of these files alone: whoever gives a
    checkpoint other files must give these too, or null."""

    def __init__(self) -> None:
        super().__init__()
        record_hyper_parameters(self)

    def model_arguments(self) -> dict[str, Any]:
        """Returns the values of ``fits``, reading the data if need be: a new model is made with
        them."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Returns, as plain values, what a model must know of the training data to predict."""
        return {}
