"""Safe reading and writing of Lightning checkpoints and safetensors; a failure is one line that
says why."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.arrays import first_few, give_aliases, parts_of
from longseq.core.checkpoints.contents import check_content, check_records, check_state
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, require_file

_OBJECT = re.compile(
    r"GLOBAL|Unsupported (?:global|class)|Can only (?:build|create)|Trying to (?:call|instantiate)"
)
_PICKLED = (
    "holds pickled Python objects, which longseq never executes",
    "re-save it as tensors and plain values where it was made, for example with "
    "torch.save(model.state_dict(), ...), or as safetensors",
)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a Lightning checkpoint on the CPU; only tensors and plain values, never code.

    Args:
        path: file written by ``fit``.

    Returns:
        The checkpoint, with at least ``state_dict``.

    Raises:
        DataError: if the file is missing, empty, truncated, not a checkpoint or holds pickled
            objects.
    """
    file = require_file(path, "checkpoint")
    with file.open("rb") as stream:
        head = stream.read(10)
    if not head.startswith((b"PK", b"\x80")):
        hint = (
            "load_weights reads safetensors"
            if file.suffix == ".safetensors"
            else "give a .ckpt written by fit"
        )
        raise DataError("is not a checkpoint", path=file, hint=hint)
    check_records(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _OBJECT.search(str(error)):
            raise DataError(_PICKLED[0], path=file, hint=_PICKLED[1]) from error
        raise DataError("is not a checkpoint, or is damaged", path=file) from error
    except Exception as error:  # of damaged bytes unpickling may raise anything
        hint = "use an earlier checkpoint or copy the file again"
        raise DataError("the checkpoint is truncated or damaged", path=file, hint=hint) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise DataError(
            "is not a checkpoint: it has no state_dict",
            path=file,
            hint="give a .ckpt written by fit",
        )
    check_content(content, file)
    return content


def check_state_dict(
    module: nn.Module, state: Mapping[str, Any], path: str | Path | None = None
) -> None:
    """Checks that ``state`` has exactly the module's keys and shapes.

    Args:
        module: that is to take the weights.
        state: name → tensor.
        path: file that they came from, for the message.

    Raises:
        DataError: naming the first few keys that are missing, unexpected, of another shape or not
            numbers.
    """
    own = module.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own
        if k in state and isinstance(own[k], Tensor) and state[k].shape != own[k].shape
    ]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
    problems = [f"{kind}: {first_few(names)}" for kind, names in kinds if names]
    if problems:
        message = (
            f"is a checkpoint of another model than {type(module).__name__}; {'; '.join(problems)}"
        )
        raise DataError(message, path=path)
    broken = [k for k, v in state.items() if isinstance(v, Tensor) and _has_nan(v)]
    if broken:
        hint = "the training diverged: take an earlier checkpoint"
        raise DataError(
            f"holds weights that are not numbers: {first_few(broken)}", path=path, hint=hint
        )


def _has_nan(value: Tensor) -> bool:
    """Returns whether a tensor holds a NaN; infinities may be meant, in masks."""
    return (value.is_floating_point() or value.is_complex()) and bool(value.isnan().any())


def save_weights(path: str | Path, module: nn.Module, hyper_parameters: Mapping[str, Any]) -> None:
    """Writes weights as safetensors, whole or not at all; tied parameters are stored once.

    Args:
        path: file to write.
        module: whose ``state_dict`` is stored.
        hyper_parameters: JSON-able; stored in the file's metadata, as is what modules keep as extra
            state.

    Raises:
        ConfigError: if the hyper-parameters or the extra state are not JSON-able.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    extra: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            extra[name] = value  # what a module's get_extra_state returned
            continue
        key = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    try:
        parts = {
            "hyper_parameters": dict(hyper_parameters),
            "aliases": aliases,
            "extra_state": extra,
        }
        metadata = {"format": "pt", **{key: json.dumps(value) for key, value in parts.items()}}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hyper-parameters and extra state must be JSON-able: {error}") from error
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a safetensors file.

    Args:
        path: file written by ``save_weights``, or any safetensors file.

    Returns:
        Name → tensor (or a module's extra state), and the hyper-parameters (empty if the file has
        none).

    Raises:
        DataError: if the file is missing, empty, truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    file = require_file(path, "safetensors file")
    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            metadata = stream.metadata() or {}
            tensors: dict[str, Any] = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        parts = parts_of(metadata, file)
        tensors |= parts["extra_state"]
        give_aliases(tensors, parts["aliases"], file)
    except DataError:
        raise
    except (SafetensorError, ValueError, KeyError, OSError, RecursionError) as error:
        raise DataError(
            "is not a safetensors file, or is truncated or damaged", path=file
        ) from error
    check_state(tensors, file)
    return tensors, parts["hyper_parameters"]


def load_weights(path: str | Path, module: nn.Module) -> dict[str, Any]:
    """Loads weights into ``module`` from safetensors or from a Lightning checkpoint, keys and
    shapes checked.

    Args:
        path: ``.safetensors`` or ``.ckpt``; of the whole module, or of its ``model`` alone, as
            ``export`` writes it.
        module: takes the weights in place; if it has a method ``adopt(state, module)``, the weights
            that this returns, checked then: a task may begin with those of a smaller model.

    Returns:
        The file's hyper-parameters.

    Raises:
        DataError: if the file is unusable or of another model.
    """
    if Path(path).suffix == ".safetensors":
        state, hyper = read_weights(path)
    else:
        content = load_checkpoint(path)
        state, hyper = content["state_dict"], dict(content.get("hyper_parameters") or {})
        if "_extra_state" not in module.state_dict():
            state.pop("_extra_state", None)  # what a run learnt of its data, in earlier versions
    alone, adopt = getattr(module, "model", None), getattr(module, "adopt", None)
    if isinstance(alone, nn.Module) and not state.keys() & module.state_dict().keys():
        module = alone if state.keys() & alone.state_dict().keys() else module
    if adopt is not None:
        state = dict(adopt(state, module))
    check_state_dict(module, state, path)
    module.load_state_dict(state, strict=True)
    return hyper
