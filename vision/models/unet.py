"""U-shaped segmentation (Ronneberger et al. 2015, arXiv 1505.04597): any image model's maps, joined
upwards.

From the deepest map on,  y_i = f_i(concat(up(y_{i+1}), x_i)),  where up is bilinear to the size of
the encoder's map x_i, and f_i two convolutions, or state-space blocks as in VM-UNet (Ruan and Xiang
2024, arXiv 2402.02491). The last x is the image itself through one convolution, so that edges are
drawn at full resolution also where the encoder begins at a half or a quarter of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.high_pass import HighPass
from longseq.vision.models.layers import FeatureExtractor, ImageModel, head
from longseq.vision.models.mhsvm import MHSVM
from longseq.vision.models.mhsvm_unet import MHSVMUNet
from longseq.vision.models.published import load_published
from longseq.vision.models.pyramid import Pyramid
from longseq.vision.models.vmamba import SS2D, VSSBlock

DecoderKind = Literal["conv", "scan", "own"]


def double_conv(ins: int, outs: int) -> nn.Sequential:
    """Returns two 3×3 convolutions, each with batch norm and ReLU: U-Net's block."""
    layers: list[nn.Module] = []
    for width in (ins, outs):
        layers += [nn.Conv2d(width, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs)]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class UNetEncoder(Pyramid):
    """The contracting path of a plain U-Net, at any resolution; alone it classifies.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every level; every level has half the resolution of the one before.
        high_pass: whether it also sees the images through high-pass filters, see ``HighPass``.
    """

    stem_key = "levels.0.0.weight"

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        dims: Sequence[int] = (16, 32, 64, 128),
        high_pass: bool = False,
    ) -> None:
        super().__init__()
        if not dims:
            raise ConfigError("dims must name at least one width")
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 2 ** (len(dims) - 1)
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [2**i for i in range(len(dims))]
        self.high_pass = HighPass(in_chans) if high_pass else None
        widths = [in_chans if self.high_pass is None else self.high_pass.width, *dims]
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in zip(widths, dims))
        self.head = head(dims[-1], num_classes)
        self.to(memory_format=torch.channels_last)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every level."""
        self.check_images(x)
        x = x if self.high_pass is None else self.high_pass(x)
        x, maps = x.contiguous(memory_format=torch.channels_last), []
        for i, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        return maps


class Join(nn.Module):
    """One level of the decoder: the map from below, enlarged, joined with the encoder's.

    Args:
        below: channels from below.
        beside: channels of the encoder's map.
        width: channels of the result.
        kind: "conv" or "scan".
    """

    def __init__(self, below: int, beside: int, width: int, kind: DecoderKind) -> None:
        super().__init__()
        self.kind = kind
        if kind == "conv":
            self.block: nn.Module = double_conv(below + beside, width)
        else:
            self.reduce = nn.Conv2d(below + beside, width, 1)
            self.block = VSSBlock(width, 0.0, 2.0, SS2D(width))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x: (B, C, h, w) from below; skip: (B, C', H, W); returns (B, width, H, W)."""
        if x.shape[2:] != skip.shape[2:]:
            x = F.interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat([x, skip.to(x.dtype)], 1)
        if self.kind == "conv":
            return self.block(x)
        return self.block(self.reduce(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Segmenter(nn.Module):
    """Images (B, C, H, W) to logits of every pixel (B, K, H, W).

    Args:
        encoder: any image model; those of one resolution, such as Vim and ViT, are enlarged at
            every step.
        num_classes: K.
        decoder: "conv", or "scan" for state-space blocks.
        stem_width: channels of the image's own convolution, where the encoder's first map is
            smaller than the image.
    """

    def __init__(
        self,
        encoder: ImageModel,
        num_classes: int,
        decoder: DecoderKind = "conv",
        stem_width: int = 16,
    ) -> None:
        super().__init__()
        check_choice("decoder", decoder, DecoderKind)
        check_positive("num_classes - 1", num_classes - 1)
        self.encoder = FeatureExtractor(encoder)
        self.in_chans, self.min_size = encoder.in_chans, encoder.min_size
        widths = list(encoder.channels)
        self.stem: nn.Module | None = None
        if encoder.reductions[0] > 1:
            self.stem = nn.Sequential(
                nn.Conv2d(encoder.in_chans, stem_width, 3, padding=1, bias=False),
                nn.BatchNorm2d(stem_width),
                nn.ReLU(),
            )
            widths = [stem_width, *widths]
        joins, below = [], widths[-1]
        for beside in reversed(widths[:-1]):
            joins.append(Join(below, beside, beside, decoder))
            below = beside
        self.joins = nn.ModuleList(joins)
        self.head = nn.Conv2d(below, num_classes, 1)
        self.to(memory_format=torch.channels_last)

    @property
    def published(self) -> ImageModel:
        """The part that published weights are loaded into."""
        return self.encoder.model

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), sides of at least ``min_size``."""
        x = x.contiguous(memory_format=torch.channels_last)
        maps = self.encoder(x)
        if self.stem is not None:
            maps = [self.stem(x), *maps]
        y = maps[-1]
        for join, skip in zip(self.joins, reversed(maps[:-1])):
            y = join(y, skip)
        return self.head(y)


class OwnSegmenter(nn.Module):
    """A published segmenter as it is, images (B, C, H, W) to logits of every pixel (B, K, H, W).

    Args:
        model: the network.
    """

    def __init__(self, model: MHSVMUNet) -> None:
        super().__init__()
        self.published = model
        self.in_chans, self.min_size = model.in_chans, 1

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.published(x)


def create_segmenter(
    encoder: str, num_classes: int, decoder: DecoderKind = "conv", **kwargs: Any
) -> Segmenter | OwnSegmenter:
    """Makes a U-shaped segmenter around a model by name.

    Args:
        encoder: one of ``list_models()``.
        num_classes: classes of pixels, the background among them.
        decoder: "conv", "scan", or "own" for the published decoder of MHS-VM.
        **kwargs: of ``create_model``: ``in_chans``, ``img_size``, ``pretrained``, the model's own;
            with "own" those of ``MHSVMUNet``.

    Raises:
        ConfigError: for an unknown name or hyper-parameter.
        DataError: if the weights are unusable.
    """
    from longseq.vision.models.registry import MODELS, create_model

    check_choice("decoder", decoder, DecoderKind)
    if decoder == "own":
        preset = MODELS[encoder]
        if preset.cls is not MHSVM:
            raise ConfigError(
                f"{encoder} has no decoder of its own (mhsvm_* have): choose conv or scan"
            )
        check_positive("num_classes - 1", num_classes - 1)
        weights = kwargs.pop("pretrained", None)
        kwargs.pop("img_size", None)
        named = {**kwargs, "num_classes": num_classes}
        whole = replace(preset, cls=MHSVMUNet).create(encoder, **named)
        if weights is not None:
            load_published(whole, weights)
        return OwnSegmenter(whole)
    model = create_model(encoder, **{**kwargs, "num_classes": 0})
    for name in model.head_norms:  # of classification only: no gradient reaches them
        model.get_submodule(name).requires_grad_(False)
    return Segmenter(model, num_classes, decoder)
