"""What all models have in common whose stages give maps of falling resolution: features, head,
maps."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.errors import ConfigError
from longseq.core.mlp import MLP
from longseq.core.ops.gelu import biased_gelu
from longseq.core.ops.gelu_mlp import gelu_mlp
from longseq.core.ops.linear_maps import mapped, plain_weights, split_bias
from longseq.core.registry import Preset
from longseq.vision.models.layers import ImageModel

IMAGENET: Mapping[str, Any] = MappingProxyType(
    {
        "img_size": 224,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop_ratio": 0.875,
        "interpolation": "bicubic",
    }
)
"""How most published weights are evaluated."""


@dataclass(frozen=True)
class ImagePreset(Preset):
    """A named image model.

    Args:
        pretrained_cfg: how its published weights are evaluated; empty where there are none.
    """

    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ExactMLP(MLP):
    """The core's MLP with the exact GELU that published weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps every position on its own."""
        weights = plain_weights(x, self.fc1, self.fc2)
        if weights is not None:
            return gelu_mlp(x, *weights)
        # torch.fx traces with what is no tensor.
        if torch.compiler.is_compiling() or not isinstance(x, Tensor):
            return self.fc2(F.gelu(self.fc1(x)))
        hidden, bias = split_bias(self.fc1, x)
        return mapped(self.fc2, F.gelu(hidden) if bias is None else biased_gelu(hidden, bias))


def check_stages(dims: Sequence[int], depths: Sequence[int], **others: Sequence[Any]) -> None:
    """Checks that there is one width, one depth and one of everything else for every stage.

    Raises:
        ConfigError: naming what is of another length, or a stage without blocks.
    """
    if len(dims) != len(depths) or not dims:
        raise ConfigError(
            f"dims and depths must be equally long, got {len(dims)} and {len(depths)}"
        )
    for name, values in others.items():
        if len(values) != len(dims):
            raise ConfigError(f"{name} needs one value per stage ({len(dims)}), got {len(values)}")
    if min(depths) < 1:
        raise ConfigError(f"every stage needs a block at least, got depths {tuple(depths)}")


def initialise(module: nn.Module) -> None:
    """Gives linear maps normal weights of deviation 0.02 and biases of 0: what most published
    image models begin with; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class PatchMerging(nn.Module):
    """Four neighbours become one position of another width; (B, H, W, C) to (B, H/2, W/2, D).

    Args:
        ins: channels C.
        outs: channels D.
        pad: whether a map of odd sides gets a row or column of zeros; otherwise it loses its last.
    """

    def __init__(self, ins: int, outs: int, pad: bool = True) -> None:
        super().__init__()
        self.pad = pad
        self.norm = nn.LayerNorm(4 * ins)
        self.reduction = nn.Linear(4 * ins, outs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        height, width = x.shape[1:3]
        if self.pad:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        else:
            x = x[:, : height // 2 * 2, : width // 2 * 2]
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


def by_windows(
    x: Tensor, size: int, mix: Callable[[Tensor], Tensor], channels_last: bool = False
) -> Tensor:
    """Applies a map of sequences to square windows of a map, which is padded with zeros to whole
    windows.

    Args:
        x: (B, C, H, W), or (B, H, W, C).
        size: side of a window.
        mix: from (windows, size², C) to the same shape.
        channels_last: whether x is (B, H, W, C).

    Returns:
        The shape of x.
    """
    x = x if channels_last else x.permute(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    right, below = -width % size, -height % size
    if right or below:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    rows, columns = (height + below) // size, (width + right) // size
    x = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)
    x = mix(x.reshape(batch * rows * columns, size * size, channels))
    x = x.view(batch, rows, columns, size, size, channels).transpose(2, 3)
    x = x.reshape(batch, rows * size, columns * size, channels)[:, :height, :width]
    return x if channels_last else x.permute(0, 3, 1, 2)


class Pyramid(ImageModel):
    """An image model of stages; each gives a map of its own width and resolution.

    A model sets ``num_features``, ``in_chans``, ``min_size``, ``channels``, ``reductions``, a
    ``head``, and says how the maps are made.
    """

    @abstractmethod
    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage, (B, C_i, H_i, W_i), of images (B, C, H, W)."""

    def normalise(self, x: Tensor) -> Tensor:
        """Returns the last stage's map as the head takes it, (B, C, H, W)."""
        return x

    def pool(self, features: Tensor) -> Tensor:
        """Returns one vector per image, (B, D); the mean over the map."""
        return features.mean((2, 3))

    def classify(self, pooled: Tensor) -> Tensor:
        """Maps pooled features to logits (B, classes)."""
        return self.head(pooled)

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the normalised map of the last stage, (B, C, H', W')."""
        return self.normalise(self.stage_maps(x)[-1])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Takes the mean over the map and maps it to logits (B, classes)."""
        pooled = self.pool(features)
        return pooled if pre_logits else self.classify(pooled)

    def forward_maps(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Returns the maps of stages, (B, C_i, H_i, W_i)."""
        maps = self.stage_maps(x)
        return [maps[i] for i in indices]


def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """Puts every batch norm that follows a convolution inside it: the same results in evaluation
    mode, with fewer operations.

    Args:
        model: in evaluation mode; changed. Its parameters' names change with it, so it is for
            inference and export, not for checkpoints. Pairs are neighbours in an ``nn.Sequential``,
            or named by a module's attribute ``fusable`` (pairs of names, convolution first).

    Returns:
        The model.

    Raises:
        ConfigError: if the model is in training mode, where batch norms depend on the batch.
    """
    if model.training:
        raise ConfigError("fuse_batch_norm needs a model in evaluation mode: call model.eval()")
    for module in list(model.modules()):
        names = list(module._modules) if isinstance(module, nn.Sequential) else []
        for first, second in [*itertools.pairwise(names), *getattr(module, "fusable", ())]:
            conv, norm = getattr(module, first), getattr(module, second)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
                setattr(module, first, fused)
                setattr(module, second, nn.Identity())
    return model
