"""Image models by name: ``create_model``, ``list_models``, and published checkpoints read
safely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from longseq.core.errors import ConfigError
from longseq.core.registry import Preset, Registry, keywords
from longseq.vision.models import (
    dinat,
    efficientvmamba,
    favit,
    groupmamba,
    inception_next,
    mambavision,
    mhsvm,
    mobilemamba,
    vir,
)
from longseq.vision.models.layers import FeatureExtractor, ImageModel
from longseq.vision.models.patch_sequence import PatchSequence
from longseq.vision.models.published import fit_published, head_classes, read_published, tell
from longseq.vision.models.pyramid import IMAGENET, ImagePreset
from longseq.vision.models.resnet import ResNet
from longseq.vision.models.unet import UNetEncoder
from longseq.vision.models.vim import Vim
from longseq.vision.models.vmamba import VMamba
from longseq.vision.models.vmamba_m2 import VMambaM2

_VIT = {"mixer": "attention", "mlp_ratio": 4.0, "norm": "layer", "positions": True}


def _heads(n: int) -> dict[str, Any]:
    return {"mixer_kwargs": {"n_heads": n, "rope_base": None, "bidirectional": True, "bias": True}}


_BASE = (128, 256, 512, 1024)
MODELS: Registry[Preset] = Registry("model")
_PRESETS = {
    "vim_tiny": ImagePreset(Vim, {}, "Vim-T, 224 px, published layout", IMAGENET),
    "vim_small": ImagePreset(Vim, {"d_model": 384}, "Vim-S, 224 px, published layout", IMAGENET),
    "vim_base": ImagePreset(Vim, {"d_model": 768}, "Vim-B, 224 px, published layout", IMAGENET),
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
    "vim_tiny_plus": ImagePreset(
        Vim, {"stride": 8}, "Vim-T+: patches of 16 at a stride of 8", IMAGENET
    ),
    "vim_small_plus": ImagePreset(Vim, {"d_model": 384, "stride": 8}, "Vim-S+: likewise", IMAGENET),
    "vmamba_tiny": ImagePreset(VMamba, {}, "VMamba-T (s1l8), published layout", IMAGENET),
    "vmamba_small": ImagePreset(
        VMamba,
        {"depths": (2, 2, 20, 2), "drop_path": 0.3},
        "VMamba-S (s1l20), published layout",
        IMAGENET,
    ),
    "vmamba_base": ImagePreset(
        VMamba,
        {"dims": _BASE, "depths": (2, 2, 20, 2), "drop_path": 0.5},
        "VMamba-B (s1l20), published layout",
        IMAGENET,
    ),
    "vmamba_tiny_s2l5": ImagePreset(
        VMamba,
        {"depths": (2, 2, 5, 2), "ratio": 2.0},
        "VMamba-T (s2l5), published layout",
        IMAGENET,
    ),
    "vmamba_small_s2l15": ImagePreset(
        VMamba,
        {"depths": (2, 2, 15, 2), "ratio": 2.0, "drop_path": 0.3},
        "VMamba-S (s2l15), published layout",
        IMAGENET,
    ),
    "vmamba_base_s2l15": ImagePreset(
        VMamba,
        {"dims": _BASE, "depths": (2, 2, 15, 2), "ratio": 2.0, "drop_path": 0.6},
        "VMamba-B (s2l15), published layout",
        IMAGENET,
    ),
    "vmamba_tiny_m2": ImagePreset(
        VMambaM2, {}, "VMamba-T with Mamba-2's scan (m2), published layout", IMAGENET
    ),
    "vmamba_small_m2": ImagePreset(
        VMambaM2,
        {"depths": (2, 2, 12, 2), "drop_path": 0.3},
        "VMamba-S (m2), published layout",
        IMAGENET,
    ),
    "vmamba_base_m2": ImagePreset(
        VMambaM2,
        {"dims": _BASE, "depths": (2, 2, 12, 2), "drop_path": 0.3},
        "VMamba-B (m2), published layout",
        IMAGENET,
    ),
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
    "resnet8_slim": Preset(
        ResNet, {"dims": (32, 64, 128)}, "resnet8, narrower: of hybrid_nano's size, and as quick"
    ),
    "hybrid_pico": Preset(
        ResNet,
        {"dims": (32, 80, 224), "scans": (2,)},
        "convolutional stages, then a recurrence over the map; 28 to 64 px, to train on a CPU",
    ),
    "hybrid_nano": Preset(
        ResNet,
        {"dims": (32, 64, 160), "scans": (2,), "averaged": True},
        "hybrid_pico, narrower, with averages in its shortcuts; 28 to 64 px, to train on a CPU",
    ),
    "hybrid_micro": Preset(
        ResNet,
        {"dims": (40, 96, 256), "scans": (2,)},
        "hybrid_pico, wider: as large as resnet8; 28 to 64 px, to train on a CPU",
    ),
    "unet": Preset(UNetEncoder, {}, "the contracting path of a plain U-Net: the one to beat"),
    "hybrid_unet": Preset(
        ResNet,
        {"dims": (32, 64, 96, 160), "depths": (1, 1, 1, 1), "scans": (3,)},
        "convolutional stages, then a recurrence over the map; a segmenter's encoder",
    ),
    "sequential": Preset(
        PatchSequence,
        {},
        "one pixel a step through any mixer of the core (mixer=..., n_layers=...)",
    ),
}
PLAIN = frozenset({"resnet8", "resnet8_slim", "vit_tiny", "vit_nano", "vit_pico", "unet"}).union(
    inception_next.PRESETS, dinat.PRESETS, favit.PRESETS
)
"""Models of others' kinds, convolutions or attention alone: baselines wherever they stand."""
_FILES = (
    mambavision,
    mobilemamba,
    groupmamba,
    efficientvmamba,
    mhsvm,
    vir,
    inception_next,
    dinat,
    favit,
)
for _presets in (_PRESETS, *(file.PRESETS for file in _FILES)):
    for _name, _preset in _presets.items():
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
    pretrained: str | Path | None = None,
    features_only: Literal[False] = False,
    **kwargs: Any,
) -> ImageModel: ...


@overload
def create_model(
    name: str,
    *,
    pretrained: str | Path | None = None,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> FeatureExtractor: ...


def create_model(
    name: str,
    *,
    pretrained: str | Path | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> ImageModel | FeatureExtractor:
    """Makes an image model by name.

    Args:
        name: one of ``list_models()``.
        pretrained: a file of weights: published (``.pth``), safetensors, or a state dict. The first
            convolution is fitted to ``in_chans`` and positions to ``img_size``; the head is the
            file's, or begins anew where ``num_classes`` is another number (0 for none). What was
            changed is said on stderr.
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
    if pretrained is not None:
        state, prefix = read_published(pretrained, model)
        classes, own = head_classes(state, model), head_classes(model.state_dict(), model)
        if "num_classes" not in kwargs and classes not in (None, own):
            model = preset.create(name, **kwargs, num_classes=classes)
        tell(pretrained, fit_published(state, model, pretrained, prefix))
    if isinstance(preset, ImagePreset) and preset.pretrained_cfg:
        model.pretrained_cfg = dict(preset.pretrained_cfg)
    if features_only:
        return FeatureExtractor(model, out_indices)
    if out_indices is not None:
        raise ConfigError("out_indices needs features_only=True")
    return model
