r"""MobileMamba (He et al. 2025, arXiv 2411.15941): a scan over some channels, depthwise
convolutions over others, the rest as they are.

Block:  depthwise → MLP → mix → depthwise → MLP, each beside a shortcut, and all of it beside one
Mixer:  W relu(concat(global(x₁), local(x₂), x₃))
Global: γ ⊙ scan(x) + iwt(γ' ⊙ conv(wt(x)))

with a two-way scan, and wt the Haar transform to four maps of half the resolution. Every
convolution has a batch norm, which ``pyramid.fuse_batch_norm`` puts inside it for inference.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.vision.models.layers import DropPath, add_branch, head, path_rates
from longseq.vision.models.pyramid import IMAGENET, ImagePreset, Pyramid, check_stages
from longseq.vision.models.vmamba import SS2D

_HAAR = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]])


class ConvNorm(nn.Sequential):
    """A convolution and its batch norm.

    Args:
        ins: channels before.
        outs: channels after.
        size: side of the kernel.
        stride: pixels from one position to the next.
        groups: of channels.
        scale: what the norm's weight begins with; 0 for a branch that is first silent.
    """

    def __init__(
        self, ins: int, outs: int, size: int = 1, stride: int = 1, groups: int = 1, scale: float = 1
    ) -> None:
        conv = nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=conv, bn=nn.BatchNorm2d(outs)))
        nn.init.constant_(self.bn.weight, scale)


def _depthwise(channels: int, scale: float = 1) -> ConvNorm:
    return ConvNorm(channels, channels, 3, groups=channels, scale=scale)


class ScanAndConvNorm(SS2D):
    """The two-way scan of a map (B, C, H, W), gated, its projections with batch norms.

    Args:
        channels: C.
        ratio: inner width as a multiple of C.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(
            channels, 1, ratio, conv_bias=True, orders=("raster", "raster_reversed"), gate=True
        )
        self.in_proj = ConvNorm(channels, 2 * self.d_inner)
        self.out_proj = ConvNorm(self.d_inner, channels)
        with torch.no_grad():  # as published
            self.A_logs.zero_()
            self.dt_projs_weight.uniform_(0, 0.1)
            self.dt_projs_bias.uniform_(0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        x, z = self.in_proj(x).split(self.d_inner, dim=1)
        y = self.scan(F.silu(self.conv2d(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out_proj(y * F.silu(z))


class Scale(nn.Module):
    """A factor for every channel of (B, C, H, W).

    Args:
        channels: C.
        value: to begin with.
    """

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, channels, 1, 1), value))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return x * self.weight


class WaveletScan(nn.Module):
    """A scan of a map beside convolutions of its Haar transform; (B, C, H, W).

    Args:
        channels: C.
        size: side of the convolutions, odd.
        ratio: inner width of the scan as a multiple of C.
    """

    wt_filter: Tensor
    iwt_filter: Tensor

    def __init__(self, channels: int, size: int, ratio: float) -> None:
        super().__init__()
        for name in ("wt_filter", "iwt_filter"):
            self.register_buffer(name, 0.5 * _HAAR.float()[:, None].repeat(channels, 1, 1, 1))
        self.global_atten = ScanAndConvNorm(channels, ratio)
        self.base_scale = Scale(channels, 1.0)
        self.wavelet_convs = nn.ModuleList(
            [
                nn.Conv2d(
                    4 * channels,
                    4 * channels,
                    size,
                    padding="same",
                    groups=4 * channels,
                    bias=False,
                )
            ]
        )
        self.wavelet_scale = nn.ModuleList([Scale(4 * channels, 0.1)])

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        even = F.pad(x, (0, width % 2, 0, height % 2))
        bands = F.conv2d(even, self.wt_filter, stride=2, groups=channels)
        bands = self.wavelet_scale[0](self.wavelet_convs[0](bands))
        fine = F.conv_transpose2d(bands, self.iwt_filter, stride=2, groups=channels)
        return self.base_scale(self.global_atten(x)) + fine[:, :, :height, :width]


class LocalConv(nn.Sequential):
    """Two depthwise convolutions with batch norms, the first with a ReLU; (B, C, H, W).

    Args:
        channels: C.
        size: side of the first kernel, odd.
    """

    def __init__(self, channels: int, size: int) -> None:
        layers: dict[str, nn.Module] = {
            "dwconv3x3": nn.Conv2d(
                channels, channels, size, padding=size // 2, groups=channels, bias=False
            ),
            "bn1": nn.BatchNorm2d(channels),
            "relu": nn.ReLU(),
            "dwconv1x1": nn.Conv2d(channels, channels, 1, groups=channels, bias=False),
            "bn2": nn.BatchNorm2d(channels),
        }
        super().__init__(OrderedDict(layers))


def global_channels(width: int, share: float) -> int:
    """Returns the channels that are scanned: the share of a width, to the nearest 16, halves up."""
    return 16 * ((int(share * width) + 8) // 16)


class SharedMixer(nn.Module):
    """The mixer over three shares of the channels: scanned, convolved, as they are; (B, C, H, W).

    Args:
        channels: C.
        scanned: share of the scan.
        convolved: share of the convolution.
        size: side of the convolutions.
        ratio: inner width of the scan as a multiple of its channels.
    """

    def __init__(
        self, channels: int, scanned: float, convolved: float, size: int, ratio: float
    ) -> None:
        super().__init__()
        first = min(channels, global_channels(channels, scanned))
        second = min(channels - first, int(convolved * channels))
        self.parts = [first, second, channels - first - second]
        self.global_op = WaveletScan(first, size, ratio) if first else nn.Identity()
        self.local_op = LocalConv(second, size) if second else nn.Identity()
        self.proj = nn.Sequential(nn.ReLU(), ConvNorm(channels, channels, scale=0))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        scanned, convolved, same = x.split(self.parts, dim=1)
        return self.proj(torch.cat([self.global_op(scanned), self.local_op(convolved), same], 1))


class Beside(nn.Module):
    """x + m(x).

    Args:
        m: the branch.
    """

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return x + self.m(x)


class ConvFFN(nn.Module):
    """Two 1×1 convolutions with batch norms, a ReLU between; (B, C, H, W).

    Args:
        channels: C.
        scale: what the last norm's weight begins with.
    """

    def __init__(self, channels: int, scale: float = 0) -> None:
        super().__init__()
        self.pw1 = ConvNorm(channels, 2 * channels)
        self.pw2 = ConvNorm(2 * channels, channels, scale=scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.pw2(torch.relu(self.pw1(x)))


class Named(nn.Module):
    """A module under the published name.

    Args:
        attn: the module.
    """

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.attn(x)


class MobileBlock(nn.Module):
    """The block of every stage; (B, C, H, W).

    Args:
        channels: C.
        mixer: of positions.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, channels: int, mixer: SharedMixer, drop_path: float) -> None:
        super().__init__()
        self.dw0, self.ffn0 = Beside(_depthwise(channels, 0)), Beside(ConvFFN(channels))
        self.mixer = Beside(Named(mixer))
        self.dw1, self.ffn1 = Beside(_depthwise(channels, 0)), Beside(ConvFFN(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        inner = self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))
        return add_branch(x, inner, self.drop_path)


class SqueezeExcite(nn.Module):
    """Channels weighted by the mean over the map (arXiv 1709.01507); (B, C, H, W).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 8 * max(1, (channels // 4 + 4) // 8)
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        weights = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weights.sigmoid()


class PatchMerging(nn.Module):
    """Half the resolution at another width: expand, depthwise of stride 2, weigh, reduce.

    Args:
        ins: channels before.
        outs: channels after.
    """

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        wide = 4 * ins
        self.conv1 = ConvNorm(ins, wide)
        self.conv2 = ConvNorm(wide, wide, 3, 2, groups=wide)
        self.se = SqueezeExcite(wide)
        self.conv3 = ConvNorm(wide, outs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.conv3(self.se(torch.relu(self.conv2(torch.relu(self.conv1(x))))))


def _step(channels: int) -> nn.Sequential:
    """A depthwise convolution and an MLP, around the change of resolution."""
    return nn.Sequential(Beside(_depthwise(channels)), Beside(ConvFFN(channels)))


class MobileMamba(Pyramid):
    """MobileMamba at any resolution; published checkpoints load by name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage; the stem's last width is the first.
        depths: blocks of every stage.
        scanned: share of the channels that is scanned, for every stage.
        convolved: share that is convolved.
        sizes: sides of the convolutions.
        ratio: inner width of the scans as a multiple of their channels.
        drop_path: highest rate of stochastic depth.
    """

    stem_key = "patch_embed.0.c.weight"
    head_key = "head.l"
    head_norms = ("head.bn",)

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (192, 384, 448),
        depths: Sequence[int] = (1, 2, 2),
        scanned: Sequence[float] = (0.8, 0.7, 0.6),
        convolved: Sequence[float] = (0.2, 0.2, 0.3),
        sizes: Sequence[int] = (7, 5, 3),
        ratio: float = 2.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages(dims, depths, scanned=scanned, convolved=convolved, sizes=sizes)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 1
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [16 * 2**i for i in range(len(dims))]
        check_positive("dims[0] // 8", dims[0] // 8)
        widths = [in_chans, *(dims[0] // part for part in (8, 4, 2, 1))]
        stem: list[nn.Module] = []
        for ins, outs in itertools.pairwise(widths):
            stem += [ConvNorm(ins, outs, 3, 2), nn.ReLU()]
        self.patch_embed = nn.Sequential(*stem[:-1])
        rates = iter(path_rates(drop_path, sum(depths)))
        for i, width in enumerate(dims):
            layers: list[nn.Module] = []
            if i:
                layers = [_step(dims[i - 1]), PatchMerging(dims[i - 1], width), _step(width)]
            for _ in range(depths[i]):
                mixer = SharedMixer(width, scanned[i], convolved[i], sizes[i], ratio)
                layers.append(MobileBlock(width, mixer, next(rates)))
            self.add_module(f"blocks{i + 1}", nn.Sequential(*layers))
        self.head: nn.Module = nn.Identity()
        if num_classes:
            layer = head(dims[-1], num_classes)
            self.head = nn.Sequential(OrderedDict(bn=nn.BatchNorm1d(dims[-1]), l=layer))

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x, maps = self.patch_embed(x), []
        for i in range(len(self.channels)):
            x = getattr(self, f"blocks{i + 1}")(x)
            maps.append(x)
        return maps


_BASE = {"dims": (200, 376, 448), "depths": (2, 3, 2), "drop_path": 0.03}


def _preset(size: str, pixels: int, **kwargs: object) -> ImagePreset:
    cfg = {**IMAGENET, "img_size": pixels}
    return ImagePreset(MobileMamba, kwargs, f"MobileMamba-{size}, {pixels} px, published", cfg)


PRESETS = {
    "mobilemamba_t2": _preset("T2", 192, dims=(144, 272, 368)),
    "mobilemamba_t4": _preset("T4", 192, dims=(176, 368, 448)),
    "mobilemamba_s6": _preset("S6", 224),
    "mobilemamba_b1": _preset("B1", 256, **_BASE),
    "mobilemamba_b2": _preset("B2", 384, **_BASE),
    "mobilemamba_b4": _preset("B4", 512, **_BASE),
}
