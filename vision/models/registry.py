"""Image models by name: ``create_model``, ``list_models``, and published checkpoints read
safely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from longseq.core.checkpoints.layouts import read_state_dict
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.errors import ConfigError
from longseq.core.registry import Preset, Registry, keywords
from longseq.vision.models.layers import FeatureExtractor, ImageModel
from longseq.vision.models.patch_sequence import PatchSequence
from longseq.vision.models.resnet import ResNet
from longseq.vision.models.vim import Vim
from longseq.vision.models.vmamba import VMamba

_VIT = {"mixer": "attention", "mlp_ratio": 4.0, "norm": "layer", "positions": True}


def _heads(n: int) -> dict[str, Any]:
    return {"mixer_kwargs": {"n_heads": n, "rope_base": None, "bidirectional": True, "bias": True}}


MODELS: Registry[Preset] = Registry("model")
_PRESETS = {
    "vim_tiny": Preset(Vim, {}, "Vim-T, 224 px, published layout"),
    "vim_small": Preset(Vim, {"d_model": 384}, "Vim-S, 224 px, published layout"),
    "vim_base": Preset(Vim, {"d_model": 768}, "Vim-B, 224 px, published layout"),
    "vim_nano": Preset(
        Vim,
        {
            "num_classes": 10,
            "img_size": 32,
            "patch_size": 4,
            "d_model": 128,
            "depth": 8,
            "drop_path": 0.05,
        },
        "Vim for 28 to 64 px, patches of 4",
    ),
    "vmamba_tiny": Preset(VMamba, {}, "VMamba-T (s1l8), published layout"),
    "vmamba_nano": Preset(
        VMamba,
        {
            "num_classes": 10,
            "dims": (48, 96, 192),
            "depths": (2, 2, 2),
            "stem_stride": 2,
            "drop_path": 0.05,
        },
        "VMamba for 28 to 64 px",
    ),
    "vmamba_pico": Preset(
        VMamba,
        {
            "num_classes": 10,
            "dims": (32, 64, 128),
            "depths": (2, 2, 2),
            "stem_stride": 2,
            "drop_path": 0.0,
        },
        "a VMamba of half a million parameters for 28 to 64 px, to train on a CPU",
    ),
    "vit_tiny": Preset(
        PatchSequence,
        {
            **_VIT,
            **_heads(3),
            "num_classes": 1000,
            "img_size": 224,
            "patch_size": 16,
            "d_model": 192,
            "n_layers": 12,
        },
        "a ViT of DeiT-T's size, 224 px, mean-pooled",
    ),
    "vit_nano": Preset(
        PatchSequence,
        {**_VIT, **_heads(4), "img_size": 32, "patch_size": 4, "d_model": 128, "n_layers": 6},
        "a ViT of vmamba_nano's and vim_nano's size, 28 to 64 px",
    ),
    "vit_pico": Preset(
        PatchSequence,
        {**_VIT, **_heads(3), "img_size": 32, "patch_size": 4, "d_model": 96, "n_layers": 5},
        "a ViT of vmamba_pico's size, 28 to 64 px",
    ),
    "resnet8": Preset(ResNet, {}, "a plain ResNet of 8 layers, for 28 to 64 px: the CNN to beat"),
    "hybrid_pico": Preset(
        ResNet,
        {"dims": (32, 80, 224), "scans": (2,)},
        "convolutional stages, then a recurrence over the map; 28 to 64 px, to train on a CPU",
    ),
    "sequential": Preset(
        PatchSequence,
        {},
        "one pixel a step through any mixer of the core (mixer=..., n_layers=...)",
    ),
}
for _name, _preset in _PRESETS.items():
    MODELS.add(_name, _preset)


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of all models that match a shell pattern, sorted.

    Args:
        pattern: for example ``"vim*"``.
    """
    return MODELS.names(pattern)


@overload
def create_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    features_only: Literal[False] = False,
    **kwargs: Any,
) -> ImageModel: ...


@overload
def create_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> FeatureExtractor: ...


def create_model(
    name: str,
    *,
    checkpoint: str | Path | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> ImageModel | FeatureExtractor:
    """Makes an image model by name.

    Args:
        name: one of ``list_models()``.
        checkpoint: a file of weights: published (``.pth``), safetensors, or a state dict. A head of
            another number of classes is an error: give the file's ``num_classes``, or 0 to leave
            its head out.
        features_only: whether to return a ``FeatureExtractor``: images to a list of maps.
        out_indices: stages of ``features_only``.
        **kwargs: the model's hyper-parameters, such as ``num_classes``, ``in_chans``, ``img_size``.

    Raises:
        ConfigError: for an unknown name or hyper-parameter, with the nearest valid one.
        DataError: if the checkpoint is unusable or of another model.
    """
    preset = MODELS[name]
    if "img_size" not in keywords(preset.cls):
        kwargs.pop("img_size", None)  # a model without learned positions takes any size as it is
    model = preset.create(name, **kwargs)
    if checkpoint is not None:
        load_published(model, checkpoint)
    if features_only:
        return FeatureExtractor(model, out_indices)
    if out_indices is not None:
        raise ConfigError("out_indices needs features_only=True")
    return model


def convert_published(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns a published state dict under this package's names and shapes.

    Accepts for VMamba both published layouts: ``x_proj_weight`` (K, R+2N, D) and ``x_proj.weight``
    (K·(R+2N), D), and 1×1 convolutions in place of linear maps. A head that the model does not have
    is left out.

    Args:
        state: as read from a file.
        model: that is to take it.
    """
    own = model.state_dict()
    renamed = {
        ".x_proj.weight": ".x_proj_weight",
        ".dt_projs.weight": ".dt_projs_weight",
        ".dt_projs.bias": ".dt_projs_bias",
    }
    found = {}
    for key, value in state.items():
        for old, new in renamed.items():
            if key.endswith(old) and key not in own and key.replace(old, new) in own:
                key = key.replace(old, new)
        if key in own and value.numel() == own[key].numel() and value.dim() != own[key].dim():
            value = value.reshape(own[key].shape)
        if key not in own and key.rpartition(".")[0].endswith("head"):
            continue
        found[key] = value
    return found


def load_published(model: nn.Module, path: str | Path, new_head: bool = False) -> None:
    """Loads a published checkpoint into a model, all keys and shapes checked.

    Args:
        model: from ``create_model``.
        path: the file.
        new_head: whether the model keeps its own head where the file's has another number of
            classes.

    Raises:
        DataError: if the file is unusable or of another model.
    """
    state, own = convert_published(read_state_dict(path), model), model.state_dict()
    if new_head:
        for key in [key for key in own if key.rpartition(".")[0].endswith("head")]:
            if key not in state or state[key].shape != own[key].shape:
                state[key] = own[key]
    check_state_dict(model, state, path)
    model.load_state_dict(state, strict=True)
