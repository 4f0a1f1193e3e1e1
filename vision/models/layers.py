"""Small parts that the image models share: stochastic depth, initialisation, the feature
extractor."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.kernels.custom_op import in_forward_mode, in_transform
from longseq.core.ops.depthwise_conv2d import depthwise_conv2d
from longseq.core.ops.linear_maps import ANY_HOOKS, plain_map


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drops a residual branch of whole samples.

    Args:
        p: probability of dropping; the kept samples are divided by 1 - p.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ConfigError(f"the probability of dropping a path must lie in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...)."""
        factors = self.factors(x)
        return x if factors is None else x * factors

    def never(self) -> bool:
        """Returns whether it leaves every branch as it is."""
        return not self.training or self.p == 0

    def factors(self, x: Tensor) -> Tensor | None:
        """Returns what every sample's branch is multiplied by, (B, 1, ...); None for nothing."""
        if self.never():
            return None
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.p
        return keep.to(x.dtype) / (1 - self.p)


def add_branch(x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """Returns ``x + drop_path(branch)``, in one pass over the map.

    Args:
        x: what the branch joins.
        branch: of the same shape.
        drop_path: stochastic depth, or what was put in its place.
    """
    # torch.fx traces with what is no tensor.
    traced = not (isinstance(x, Tensor) and isinstance(branch, Tensor))
    if traced or not plain_map(drop_path, ANY_HOOKS, DropPath):
        return x + drop_path(branch)
    assert isinstance(drop_path, DropPath)
    factors = drop_path.factors(branch)
    return x + branch if factors is None else _joined(x, branch, factors)


def _joined(x: Tensor, branch: Tensor, factors: Tensor) -> Tensor:
    same = x.dtype == branch.dtype
    return torch.addcmul(x, branch, factors) if same else x + branch * factors


def with_branch(x: Tensor, layers: Sequence[nn.Module], drop_path: nn.Module) -> Tensor:
    """Returns ``x + drop_path(layers(x))``; on a CPU only the samples whose branch is kept are put
    through it: results and gradients are the same, and what is dropped costs next to nothing.

    Args:
        x: (B, ...).
        layers: one after another, none of which mixes samples.
        drop_path: stochastic depth, or what was put in its place.
    """
    if _drops(x, drop_path):
        assert isinstance(drop_path, DropPath)
        factors = drop_path.factors(x)
        assert factors is not None
        kept = factors.flatten().nonzero().flatten()
        if len(kept) == len(x) or not _by_sample(layers):
            return _joined(x, _through(layers, x), factors)
        if len(kept) == 0:
            learnt = [p for layer in layers for p in layer.parameters() if p.requires_grad]
            return _Unmoved.apply(x, *learnt)
        branch = _through(layers, x[kept])
        wide = torch.promote_types(x.dtype, branch.dtype)
        return x.to(wide).index_add(0, kept, branch.to(wide), alpha=1 / (1 - drop_path.p))
    return add_branch(x, _through(layers, x), drop_path)


def _drops(x: Tensor, drop_path: nn.Module) -> bool:
    """Returns whether samples may be dropped here, and a look at which of them costs nothing."""
    # torch.fx traces with what is no tensor.
    if type(x) is not Tensor or not x.is_cpu or torch.compiler.is_compiling():
        return False
    if not plain_map(drop_path, ANY_HOOKS, DropPath):
        return False
    assert isinstance(drop_path, DropPath)
    seen = torch._C._is_tracing() or in_transform() or in_forward_mode()
    return not (drop_path.never() or seen or torch._C._len_torch_dispatch_stack())


def _by_sample(layers: Sequence[nn.Module]) -> bool:
    """Returns whether nobody asks for the whole batch: no hook, no batch norm."""
    parts = [part for layer in layers for part in layer.modules()]
    return all(plain_map(part, ANY_HOOKS, type(part)) for part in parts) and not any(
        isinstance(part, nn.modules.batchnorm._BatchNorm) for part in parts
    )


def _through(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class _Unmoved(torch.autograd.Function):
    """x beside a branch that no sample takes: gradients of 0 for its parameters, as an optimiser
    and a group of processes expect them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *learnt: Tensor) -> Tensor:
        ctx.save_for_backward(*learnt)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        # What is to be differentiated again must hang on something.
        again = torch.is_grad_enabled()
        zeros = (one * 0 if again else torch.zeros_like(one) for one in ctx.saved_tensors)
        return grads[0], *zeros


def path_rates(rate: float, depth: int) -> list[float]:
    """Returns stochastic depth's rate of every layer, rising linearly from 0 to ``rate``."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def step_size_bias(shape: tuple[int, ...], low: float = 1e-3, high: float = 0.1) -> Tensor:
    """Returns biases whose softplus is log-uniform between ``low`` and ``high`` (Mamba's step
    sizes)."""
    dt = torch.rand(shape)
    if dt.is_meta:  # only counted: every operation on nothing costs as much as on a small tensor
        return dt
    dt = torch.exp(dt * math.log(high / low) + math.log(low)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))


class ImageModel(nn.Module):
    """What every image model offers: features, head, and maps at several depths.

    Attributes:
        num_features: width of the pooled features.
        channels: width of the map after every stage.
        reductions: how many pixels per position of that map spans.
        stem_key: the first convolution's weight, which published weights may have for other
            channels.
        head_key: the classifier's name.
        more_heads: further classifiers, whose logits are averaged with its.
        head_norms: norms before it, which a file of a backbone alone need not have.
        not_read: parts of names in published files that are passed over: tensors that are there
            twice, a decoder.
        positions_keys: learned positions, which depend on the size of images.
        pretrained_cfg: ``mean``, ``std``, ``crop_ratio``, ``interpolation`` and ``img_size`` with
            which published weights were evaluated; empty where none are published.
    """

    num_features: int
    in_chans: int
    min_size: int
    channels: list[int]
    reductions: list[int]
    stem_key: ClassVar[str] = "patch_embed.proj.weight"
    head_key: ClassVar[str] = "head"
    more_heads: ClassVar[tuple[str, ...]] = ()
    head_norms: ClassVar[tuple[str, ...]] = ()
    not_read: ClassVar[tuple[str, ...]] = ()
    positions_keys: ClassVar[tuple[str, ...]] = ()
    pretrained_cfg: Mapping[str, Any] = MappingProxyType({})

    def fit_positions(self, positions: Tensor) -> Tensor | None:
        """Returns stored positions at this model's grid; None if they are of another kind."""
        return None

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a published state dict, its names ours already, in this model's own form."""
        return state

    def check_images(self, x: Tensor) -> None:
        """Checks a batch of images.

        Raises:
            ArgumentError: unless x is (B, in_chans, H, W) with sides that the model can take.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < self.min_size:
            raise ArgumentError(
                f"{type(self).__name__}: images must be (batch, {self.in_chans}, height, width), "
                f"with sides of at least {self.min_size}, got {tuple(x.shape)}"
            )

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the normalised features of every position, before pooling; images (B, C, H,
        W)."""

    @abstractmethod
    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools features and, unless ``pre_logits``, maps them to logits (B, classes)."""

    @abstractmethod
    def forward_maps(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Returns the maps (B, C_i, H_i, W_i) after the stages ``indices``."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def head(width: int, num_classes: int) -> nn.Module:
    """Returns the linear classifier, or the identity if there are no classes."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ConfigError(f"num_classes must be an integer of at least 0, got {num_classes!r}")
    if num_classes == 0:
        return nn.Identity()
    layer = nn.Linear(width, num_classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def before_scan(
    d_model: int, ratio: float, conv_size: int, conv_bias: bool, gate: bool = False
) -> tuple[int, nn.Linear, nn.Conv2d]:
    """Returns what stands before the scans of a map: the inner width, its projection and its
    depthwise convolution.

    Args:
        d_model: width D.
        ratio: inner width as a multiple of D.
        conv_size: side of the convolution, odd.
        conv_bias: whether it has a bias.
        gate: whether the projection gives as many channels again, for a gate.

    Raises:
        ConfigError: for a width below 1, or an even side.
    """
    inner = check_positive("ratio · d_model", int(ratio * d_model))
    if conv_size % 2 == 0:
        raise ConfigError(f"conv_size must be odd, got {conv_size}")
    project = nn.Linear(d_model, inner * (1 + gate), bias=False)
    side = conv_size // 2
    conv = nn.Conv2d(inner, inner, conv_size, padding=side, groups=inner, bias=conv_bias)
    return inner, project, conv


def depthwise(conv: nn.Module, x: Tensor, silu: bool = False) -> Tensor:
    """Applies a depthwise convolution of stride 1, perhaps with SiLU behind it, to maps channels
    last.

    A module that is more than such a convolution (hooks, another layer in its place) is called.

    Args:
        conv: from (B, C, H, W) to the same shape.
        x: (B, H, W, C).
        silu: whether SiLU follows.
    """
    if plain_map(conv, ANY_HOOKS, nn.Conv2d) and not torch.compiler.is_compiling():
        assert isinstance(conv, nn.Conv2d)
        sides, channels = conv.kernel_size, x.shape[-1]
        counts = (conv.groups, conv.out_channels) == (channels, channels)
        form = (conv.stride, conv.dilation, conv.padding, conv.padding_mode)
        same = tuple(side // 2 for side in sides)
        if counts and form == ((1, 1), (1, 1), same, "zeros") and all(s % 2 for s in sides):
            return depthwise_conv2d(x, conv.weight, conv.bias, silu=silu)
    y: Tensor = conv(x.permute(0, 3, 1, 2))
    return (F.silu(y) if silu else y).permute(0, 2, 3, 1)


class FeatureExtractor(nn.Module):
    """A model cut down to the maps at several depths, for detection and segmentation.

    Args:
        model: any image model.
        out_indices: stages whose maps are wanted, from 0; negative ones count from the end.

    Attributes:
        feature_info: for every map its ``channels`` and ``reduction`` (pixels per position).
    """

    def __init__(self, model: ImageModel, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        stages = len(model.channels)
        wanted = list(range(stages)) if out_indices is None else list(out_indices)
        if not wanted or any(not -stages <= i < stages for i in wanted):
            raise ConfigError(
                f"out_indices must lie between {-stages} and {stages - 1}, got {wanted}"
            )
        self.model, self.out_indices = model, [i % stages for i in wanted]
        self.feature_info = [
            {"channels": model.channels[i], "reduction": model.reductions[i]}
            for i in self.out_indices
        ]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns one map (B, C_i, H_i, W_i) an index, in the order asked for."""
        return self.model.forward_maps(x, self.out_indices)
