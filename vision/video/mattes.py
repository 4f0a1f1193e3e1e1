"""Losses and errors of alpha mattes, and the background differences that a matte must beat."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import DataError


def _blur(images: Tensor) -> Tensor:
    """Returns maps (N, 1, H, W) through the binomial filter of 5 × 5, mirrored at the borders."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype, device=images.device) / 16
    mode = "reflect" if min(images.shape[2:]) > 2 else "replicate"
    rows = F.conv2d(F.pad(images, (0, 0, 2, 2), mode=mode), taps.view(1, 1, 5, 1))
    return F.conv2d(F.pad(rows, (2, 2, 0, 0), mode=mode), taps.view(1, 1, 1, 5))


def laplacian_loss(alpha: Tensor, target: Tensor, levels: int = 4) -> Tensor:
    """Returns the mean absolute difference of Laplacian pyramids (Hou and Liu 2019; weights
    2^s / levels as in arXiv 2108.11515).

    Args:
        alpha: (N, 1, H, W).
        target: likewise.
        levels: of the pyramid, fewer where a map has less than 4 pixels on a side.
    """
    total = alpha.new_zeros(())
    rest = alpha - target  # pyramids are linear: that of the difference
    for level in range(levels):
        if min(rest.shape[2:]) < 4:
            break
        low = F.avg_pool2d(_blur(rest), 2)
        band = rest - F.interpolate(low, rest.shape[2:], mode="bilinear", align_corners=False)
        total, rest = total + 2**level * band.abs().mean() / levels, low
    return total


def matte_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Returns L1 plus the Laplacian loss of the mattes that logits stand for.

    Args:
        logits: (B, L, 1, H, W).
        target: alpha from 0 to 1, likewise.
    """
    alpha, target = torch.sigmoid(logits).flatten(0, 1), target.flatten(0, 1)
    return (alpha - target).abs().mean() + laplacian_loss(alpha, target)


class MatteError(Metric):
    """An error of mattes, the mean over all pixels of all frames, times 1,000.

    "mad" is |α - α*|, "mse" its square, "gradient" the squared difference of the lengths of α's
    gradients through a Gaussian of 1.4 pixels (Rhemann et al. 2009), "dt" the squared difference
    of the changes from frame to frame (after Erofeev et al. 2015).

    Args:
        kind: one of those.
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        for name in ("total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, alpha: Tensor, target: Tensor) -> None:
        """Adds mattes (B, L, 1, H, W)."""
        found = alpha - target
        if self.kind == "dt":
            found = found.diff(dim=1)
        elif self.kind == "gradient":
            found = _slope(alpha.flatten(0, 1)) - _slope(target.flatten(0, 1))
        found = found.abs() if self.kind == "mad" else found.square()
        self.total += found.double().sum()
        self.count += found.numel()

    def compute(self) -> Tensor:
        return (1000 * self.total / self.count).float()


def _slope(alpha: Tensor, sigma: float = 1.4) -> Tensor:
    """Returns the length of the gradient of maps (N, 1, H, W)."""
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, dtype=alpha.dtype, device=alpha.device)
    smooth = torch.exp(-at.square() / (2 * sigma**2))
    smooth = smooth / smooth.sum()
    change = -at / sigma**2 * smooth
    padded = F.pad(alpha, (reach,) * 4, mode="replicate")
    slopes = [
        F.conv2d(F.conv2d(padded, a.view(1, 1, -1, 1)), b.view(1, 1, 1, -1))
        for a, b in ((change, smooth), (smooth, change))
    ]
    return torch.hypot(*slopes)


def background_difference(frames: Tensor, running: bool = False) -> Tensor:
    """Returns how far every pixel is from the median of its colours over the clip, (B, L, 1, H, W).

    Args:
        frames: (B, L, C, H, W).
        running: whether only the frames so far are known, as of a camera that runs.
    """
    if running:
        medians = [
            frames[:, : i + 1].median(1, keepdim=True).values for i in range(frames.shape[1])
        ]
        median = torch.cat(medians, 1)
    else:
        median = frames.median(1, keepdim=True).values
    return (frames - median).square().mean(2, keepdim=True).sqrt()


class MedianMatte:
    """The plain baseline: alpha from the distance to the clip's median background.

        α = clip((d - low) / (high - low), 0, 1),  d smoothed over 5 × 5 pixels or not.

    Args:
        running: see ``background_difference``.
    """

    def __init__(self, running: bool = False) -> None:
        self.running = running
        self.low, self.high, self.smooth = 0.0, 1.0, False

    def alpha(self, frames: Tensor) -> Tensor:
        """Returns mattes (B, L, 1, H, W) of frames (B, L, C, H, W)."""
        return self._matte(self._distance(frames, self.smooth), self.low, self.high)

    def _distance(self, frames: Tensor, smooth: bool) -> Tensor:
        distance = background_difference(frames, self.running)
        return _blur(distance.flatten(0, 1)).view_as(distance) if smooth else distance

    @staticmethod
    def _matte(distance: Tensor, low: float, high: float) -> Tensor:
        return ((distance - low) / (high - low)).clamp(0, 1)

    def fit(self, clips: Iterable[tuple[Tensor, Tensor]]) -> MedianMatte:
        """Chooses smoothing and thresholds with the least mean absolute error.

        Args:
            clips: pairs of frames and alpha, with a batch's dimension.

        Raises:
            DataError: if there are none.
        """
        known = list(clips)
        if not known:
            raise DataError("there are no clips to choose the baseline's thresholds on")
        least = math.inf
        for smooth in (False, True):
            seen = [(self._distance(frames, smooth), alpha) for frames, alpha in known]
            for low in (0.0, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16):
                for width in (0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
                    errors = [(self._matte(d, low, low + width) - a).abs().mean() for d, a in seen]
                    error = float(torch.stack(errors).mean())
                    if error < least:
                        least = error
                        self.low, self.high, self.smooth = low, low + width, smooth
        return self
