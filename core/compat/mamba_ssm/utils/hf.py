"""Reading the configuration and weights of a published folder or name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.errors import ConfigError, DataError

__all__ = ["load_config_hf", "load_state_dict_hf"]
__getattr__ = module_getattr(__name__)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def _file(name: str, *files: str) -> Path:
    """Returns the first of the files that a folder, or a name on the hub, has.

    Raises:
        DataError: if it has none.
        ConfigError: if the name is no folder and the hub's client is not installed.
    """
    folder = Path(name)
    if folder.is_dir():
        for file in files:
            if (folder / file).is_file():
                return folder / file
        raise DataError(f"there is no {' or '.join(files)}", path=folder)
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"{name} is not a folder; to load it by name from the hub: pip install huggingface_hub"
        ) from None
    for file in files:
        try:
            return Path(hf_hub_download(name, file))
        except EntryNotFoundError:
            continue
    raise DataError(f"there is no {' or '.join(files)}", path=name)


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Returns what config.json of a folder, or of a name on the hub, says.

    Raises:
        DataError: if it is missing or no JSON object.
    """
    file = _file(model_name, "config.json")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", path=file) from error
    if not isinstance(said, dict):
        raise DataError("is not a JSON object", path=file)
    return said


def load_state_dict_hf(
    model_name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Returns the weights of a folder, or of a name on the hub; no code in them is run.

    Args:
        model_name: folder or name, with model.safetensors or pytorch_model.bin.
        device: where they are put.
        dtype: that they are cast to.

    Raises:
        DataError: if there are none, or the file is damaged or holds anything but tensors.
    """
    file = _file(model_name, *_WEIGHTS)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"cannot be read as weights: {error}", path=file) from error
    return {name: t.to(device=device, dtype=dtype) for name, t in state.items()}
