"""Published checkpoints: prefixes and layouts of their keys, and weights fitted to other sizes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from longseq.core.checkpoints.layouts import read_state_dict
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.errors import ConfigError
from longseq.vision.models.layers import ImageModel

PREFIXES = (
    "",
    "module.",  # DistributedDataParallel
    "_orig_mod.",  # torch.compile
    "ema.",  # longseq's own checkpoints: averaged weights first
    "model.",
    "backbone.",  # mmsegmentation, mmdetection
    "module.backbone.",
    "encoder.",
    "vmunet.",  # VM-UNet, MHS-VM
)
_RENAMED = {
    ".x_proj.weight": ".x_proj_weight",
    ".dt_projs.weight": ".dt_projs_weight",
    ".dt_projs.bias": ".dt_projs_bias",
}


def without_prefix(state: Mapping[str, Tensor], model: ImageModel) -> tuple[dict[str, Tensor], str]:
    """Returns the keys that belong to a model without what stands before them, and what that is.

    Args:
        state: as read from a file.
        model: that is to take it.
    """
    own = set(convert_names(model.state_dict(), model))

    def fitting(prefix: str) -> dict[str, Tensor]:
        return {key[len(prefix) :]: v for key, v in state.items() if key.startswith(prefix)}

    counts = [len(own & set(convert_names(fitting(prefix), model))) for prefix in PREFIXES]
    prefix = PREFIXES[max(range(len(PREFIXES)), key=lambda i: counts[i])]
    return fitting(prefix), prefix


def convert_names(state: Mapping[str, Tensor], model: ImageModel) -> dict[str, Tensor]:
    """Returns a published state dict under this package's names and shapes.

    Accepts for VMamba both published layouts: ``x_proj_weight`` (K, R+2N, D) and ``x_proj.weight``
    (K·(R+2N), D), and 1×1 convolutions in place of linear maps.

    Args:
        state: as read from a file, without prefix.
        model: that is to take it.
    """
    own = model.state_dict()
    found = {}
    for key, value in state.items():
        if any(part in key for part in model.not_read):
            continue
        for old, new in _RENAMED.items():
            if key.endswith(old) and key not in own and key.replace(old, new) in own:
                key = key.replace(old, new)
        if (
            key in own
            and value.numel() == own[key].numel()
            and value.dim() != own[key].dim()
            and key not in model.positions_keys
        ):
            value = value.reshape(own[key].shape)
        found[key] = value
    return model.converted(found)


def fit_stem(weight: Tensor, channels: int) -> Tensor | None:
    """Returns the first convolution's weights (D, C, …) for another number of channels, or None.

    Three or more channels get the colours in turn, each divided by how many channels have it; fewer
    get the mean share. So an image that is equal in all channels is seen as before.

    Args:
        weight: of 1 or 3 channels.
        channels: wanted.
    """
    have = weight.shape[1]
    if have not in (1, 3):
        return None
    if channels < have:
        return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
    colours = torch.arange(channels) % have
    share = torch.bincount(colours)[colours]
    return weight[:, colours] / share.to(weight.dtype).view(1, -1, 1, 1)


def head_classes(state: Mapping[str, Tensor], model: ImageModel) -> int | None:
    """Returns the number of classes of a state dict's head, None if it has none.

    Args:
        state: under this package's names.
        model: that is to take it.
    """
    found = state.get(f"{model.head_key}.weight")
    return None if found is None else len(found)


def read_published(path: str | Path, model: ImageModel) -> tuple[dict[str, Tensor], str]:
    """Returns a file's weights under a model's names, and the prefix that they had.

    Args:
        path: the file.
        model: that is to take them.

    Raises:
        ConfigError: for True and False, which name no file.
        DataError: if the file is unusable.
    """
    if isinstance(path, bool):
        raise ConfigError(
            f"pretrained is {path}: it is the path of a file of weights, none of which come with "
            "longseq, or None"
        )
    state, prefix = without_prefix(read_state_dict(path), model)
    return convert_names(state, model), prefix


def fit_published(
    state: dict[str, Tensor], model: ImageModel, path: str | Path, prefix: str = ""
) -> list[str]:
    """Loads weights into a model, fitted to its channels, its size and its classes.

    Everything but the first convolution's channels, the positions' grid and the head must fit as it
    is.

    Args:
        state: from ``read_published``; changed.
        model: to load into.
        path: for messages.
        prefix: that the keys had: a backbone's file need not have a head.

    Returns:
        What was changed, in words.

    Raises:
        DataError: if the file is of another model.
    """
    own, notes = model.state_dict(), []
    stem = model.stem_key
    if stem in state and state[stem].dim() == 4 and state[stem].shape != own[stem].shape:
        fitted = fit_stem(state[stem], own[stem].shape[1])
        if fitted is not None and fitted.shape == own[stem].shape:
            have, want = state[stem].shape[1], own[stem].shape[1]
            notes.append(f"{stem} was fitted from {have} to {want} channels")
            state[stem] = fitted
    for key in model.positions_keys:
        if key in own and key in state and state[key].shape != own[key].shape:
            resized = model.fit_positions(state[key])
            if resized is not None and resized.shape == own[key].shape:
                notes.append(f"{key} was resized from {tuple(state[key].shape)}")
                state[key] = resized
    heads = tuple(f"{name}." for name in (model.head_key, *model.more_heads))
    inside = (*heads, *(f"{name}." for name in model.head_norms))
    new = [
        key
        for key in own
        if key.startswith(heads) and (key not in state or state[key].shape != own[key].shape)
    ]
    if (
        "backbone." in prefix or prefix == "vmunet."
    ):  # its own norms at the stages' ends are those of another head
        new += [key for key in own if key.startswith(inside) and key not in state]
        state = {key: value for key, value in state.items() if not key.startswith("outnorm")}
    for key in dict.fromkeys(new):
        state[key] = own[key]
    if new:
        notes.append(f"{', '.join(dict.fromkeys(new))} start anew")
    dropped = [key for key in state if key not in own and key.startswith(inside)]
    state = {key: value for key, value in state.items() if key not in dropped}
    check_state_dict(model, state, path)
    with torch.no_grad():
        model.load_state_dict(state, strict=True)
    return notes


def load_published(model: ImageModel, path: str | Path) -> None:
    """Loads a published checkpoint into a model and says on stderr what had to be changed.

    Args:
        model: from ``create_model``.
        path: the file.

    Raises:
        DataError: if the file is unusable or of another model.
    """
    state, prefix = read_published(path, model)
    tell(path, fit_published(state, model, path, prefix))


def tell(path: str | Path, notes: list[str]) -> None:
    """Says on stderr how weights were changed."""
    for note in notes:
        print(f"note: {path}: {note}", file=sys.stderr)
