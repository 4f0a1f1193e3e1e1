"""Reading a checkpoint after training: its task and its data, in one way for every domain."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from longseq.core.checkpoints.contents import check_sizes
from longseq.core.checkpoints.foreign import import_modules
from longseq.core.checkpoints.safe import check_state_dict, load_checkpoint
from longseq.core.domain import Domain, current_path, domains_of
from longseq.core.errors import DataError, did_you_mean
from longseq.core.training.facts import KEY
from longseq.core.training.hyper import BaseData, class_path
from longseq.core.training.task import BaseTask

Data = TypeVar("Data", bound=BaseData)
Hyper = dict[str, dict[str, Any]]
MODEL, DATA = "hyper_parameters", "datamodule_hyper_parameters"


def find_class(
    content: dict[str, Any], path: str | Path, section: str = MODEL, allow: Iterable[str] = ()
) -> tuple[type[Any] | None, dict[str, Any]]:
    """Returns the class that a checkpoint names for its task or its data, and the class's
    arguments.

    Args:
        content: of the checkpoint; brought to today's form.
        path: its file, for the message.
        section: ``MODEL`` or ``DATA``.
        allow: modules from outside longseq that may be imported, beside those that the user has
            named.

    Returns:
        The class (None if the checkpoint names none), and its arguments.

    Raises:
        DataError: if it cannot be imported, may not be, or is neither a ``BaseTask`` nor a
            ``BaseData``.
    """
    hyper = dict(content.get(section) or {})
    hyper.pop("_instantiator", None)
    dotted = hyper.pop("_class_path", None)
    if not isinstance(dotted, str):
        return None, hyper
    import_modules(content, path, allow, (section,))
    dotted = current_path(dotted)
    module, _, name = dotted.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise DataError(f"is of {dotted}, which cannot be imported: {error}", path=path) from error
    if section == MODEL and inspect.isclass(found) and issubclass(found, BaseTask):
        found.upgrade(content)  # which may rename, add and drop arguments
        named = dict(content[MODEL])
        hyper = {
            name: named[name] for name in named if name not in ("_instantiator", "_class_path")
        }
    base, what = (BaseTask, "task") if section == MODEL else (BaseData, "data module")
    if not (inspect.isclass(found) and issubclass(found, base)):
        if dotted.startswith("longseq."):
            said = f"is of {dotted}, which is no {what} of this version of longseq"
            raise DataError(said, path=path)
        if found is not None:
            raise DataError(f"is of {dotted}, which is no {what}", path=path)
        here = [key for key, one in vars(sys.modules[module]).items() if _derives(one, base)]
        near = did_you_mean(name, here)
        raise DataError(f"is of {dotted}, but {module} has no such class; {near}", path=path)
    _check_arguments(found, hyper, path)
    return found, hyper


def _derives(thing: Any, base: type) -> bool:
    return inspect.isclass(thing) and issubclass(thing, base) and thing is not base


def _check_arguments(cls: type, hyper: Mapping[str, Any], path: str | Path) -> None:
    """Checks that a class still takes the arguments that a checkpoint holds, and no others.

    Raises:
        DataError: naming those that it does not take, or needs.
    """
    taken = inspect.signature(cls).parameters.values()
    named = {
        one.name: one for one in taken if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    }
    since = "has the class changed since the training?"
    own = f"{cls.__module__}.{cls.__qualname__}"
    needed = [key for key, one in named.items() if one.default is one.empty and key not in hyper]
    if needed:
        said = f"holds no {', '.join(needed)}, which {own} needs; {since}"
        raise DataError(said, path=path, hint="give a new argument a default")
    known = set(named)
    if issubclass(cls, BaseTask):  # the rest goes to its bases
        own_inits = [vars(one)["__init__"] for one in cls.__mro__ if "__init__" in vars(one)]
        known |= {key for init in own_inits[:-1] for key in inspect.signature(init).parameters}
        known |= set(cls.recipe_defaults())
    closed = len(named) == len(taken) or issubclass(cls, BaseTask)
    unknown = [key for key in hyper if key not in known]
    if closed and unknown:
        near = did_you_mean(unknown[0], named)
        said = f"holds {', '.join(unknown)}, which {own} does not take; {since} {near}"
        raise DataError(said, path=path)


def task_class(
    content: dict[str, Any], path: str | Path, allow: Iterable[str] = ()
) -> tuple[type[BaseTask], dict[str, Any]]:
    """Returns the task class that a checkpoint names, and its arguments; as ``find_class``.

    Raises:
        DataError: also if the checkpoint names none.
    """
    cls, hyper = find_class(content, path, MODEL, allow)
    if cls is None:
        raise DataError("does not say which model it is of (no _class_path)", path=path)
    return cls, hyper


def check_domain(cls: type, expected: str, path: str | Path) -> None:
    """Checks that a class of task or data belongs to a domain; one of no domain belongs to any.

    Args:
        cls: the class.
        expected: the domain's name.
        path: the checkpoint.

    Raises:
        DataError: if it is of another domain.
    """
    names = [domain.name for domain in domains_of(cls)]
    if not names and cls.__module__.startswith("longseq."):
        names = [cls.__module__.split(".")[1]]
    if names and expected not in names:
        raise DataError(f"is a checkpoint of {' and '.join(names)}, not of {expected}", path=path)


def load_task(
    path: str | Path, expected: str | type[BaseTask] | None = None, allow: Iterable[str] = ()
) -> BaseTask:
    """Builds the task that a checkpoint holds, with its hyper-parameters and weights, in evaluation
    mode.

    Args:
        path: a checkpoint written by ``fit``.
        expected: a domain's name ("genomics") or a task class that it must be of.
        allow: modules from outside longseq that the checkpoint may have imported, for example
            ``["my_module"]``; those named by --import, LONGSEQ_IMPORT or an installed plug-in are
            allowed already.

    Raises:
        DataError: if the file is unusable, or of another domain or model.
    """
    content = load_checkpoint(path)
    cls, hyper = task_class(content, path, allow)
    if isinstance(expected, str):
        check_domain(cls, expected, path)
    if inspect.isclass(expected) and not issubclass(cls, expected):
        raise DataError(f"is a checkpoint of {cls.__name__}, not of {expected.__name__}", path=path)
    check_sizes(hyper, content["state_dict"], path)
    try:
        task = cls(**hyper)
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
        LookupError,
    ) as error:
        raise DataError(
            f"its hyper-parameters do not fit {cls.__name__}: {_line(error)}", path=path
        ) from error
    check_state_dict(task, content["state_dict"], path)
    task.load_state_dict(content["state_dict"], strict=True)
    task.facts = dict(content[KEY])
    return task.eval()


def harmless(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a data module's arguments without what would act outside: a checkpoint downloads
    nothing by itself.

    Args:
        hyper: as the checkpoint has them.
    """
    return {**hyper, **({"download": False} if "download" in hyper else {})}


def _line(error: BaseException) -> str:
    """Returns the first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def load_data(path: str | Path, cls: type[Data], allow: Iterable[str] = (), **changes: Any) -> Data:
    """Builds the data module that a checkpoint was trained with.

    Args:
        path: a checkpoint written by ``fit``.
        cls: class that it must be of.
        allow: modules from outside longseq that may be imported, as in ``load_task``.
        **changes: arguments in place of the checkpoint's.

    Raises:
        DataError: if the file is unusable, or does not say which data of this class it was trained
            on.
    """
    found, hyper = find_class(load_checkpoint(path), path, DATA, allow)
    if found is None or not issubclass(found, cls):
        raise DataError(f"does not say on which {cls.__name__} it was trained", path=path)
    try:
        return found(**{**harmless(hyper), **changes})
    except (TypeError, AttributeError) as error:
        raise DataError(
            f"its hyper-parameters do not fit {found.__name__}: {error}", path=path
        ) from error


def read_hyper(path: str, domain: Domain) -> Hyper:
    """Returns a checkpoint's hyper-parameters as ``model`` and ``data`` configurations.

    Args:
        path: checkpoint.
        domain: that it must be of.

    Raises:
        DataError: if it is unusable, or of another domain.
    """
    content = load_checkpoint(path)
    found: Hyper = {}
    task_class(content, path)
    for key, section in (("model", MODEL), ("data", DATA)):
        cls, hyper = find_class(content, path, section)
        if cls is None:
            continue
        check_domain(cls, domain.name, path)
        hyper = harmless(hyper)
        check_sizes(hyper, content["state_dict"], path)
        # What a version that wrote the checkpoint did not know is as it was then.
        if key == "model":
            taken, defaults = inspect.signature(cls.__init__).parameters, cls.recipe_defaults()
            hyper = {**{name: defaults[name] for name in defaults if name in taken}, **hyper}
        found[key] = {"class_path": class_path(cls), "init_args": json.loads(json.dumps(hyper))}
    return found
