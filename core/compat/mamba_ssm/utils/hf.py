"""Reading the configuration and weights of a published folder or name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longseq.core.checkpoints.folders import (
    CONFIG,
    INDEX,
    WEIGHTS,
    read_index,
    read_json,
    weight_files,
)
from longseq.core.checkpoints.layouts import read_state_dict
from longseq.core.compat._names import module_getattr
from longseq.core.errors import ConfigError, DataError

__all__ = ["load_config_hf", "load_state_dict_hf"]
__getattr__ = module_getattr(__name__)


def _folder(name: str, *files: str) -> Path:
    """Returns a folder; for a name on the hub that into which the first of the files was put, and
    with an index its shards.

    Raises:
        DataError: if the hub has none of them, or is not reached.
        ConfigError: if the name is no folder and the hub's client is not installed.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        raise ConfigError(
            f"{name} is not a folder; to load it by name from the hub: pip install huggingface_hub"
        ) from None
    for file in files:
        try:
            found = Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:
            raise DataError("is not a folder, and the hub was not reached", path=name) from error
        except EntryNotFoundError:
            continue
        except (HFValidationError, HfHubHTTPError) as error:
            raise DataError("is not a folder, and no model on the hub", path=name) from error
        if file.endswith(INDEX):
            for shard in read_index(found):
                hf_hub_download(name, shard)
        return found.parent
    raise DataError(f"there is no {' or '.join(files)}", path=name)


def load_config_hf(model_name: str) -> dict[str, Any]:
    """Returns what config.json of a folder, or of a name on the hub, says.

    Raises:
        DataError: if it is missing or no JSON object.
    """
    return read_json(_folder(model_name, CONFIG) / CONFIG)


def load_state_dict_hf(
    model_name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Returns the weights of a folder, or of a name on the hub; no code in them is run.

    Args:
        model_name: folder or name, with model.safetensors or pytorch_model.bin, whole or in shards
            beside an index.
        device: where they are put.
        dtype: that they are cast to.

    Raises:
        DataError: if there are none, a shard is missing, or a file is damaged or holds no weights.
    """
    files = [name + ending for name in WEIGHTS for ending in ("", INDEX)]
    state: dict[str, Tensor] = {}
    for file in weight_files(_folder(model_name, *files)):
        state.update(read_state_dict(file))
    return {name: t.to(device=device, dtype=dtype) for name, t in state.items()}
