"""Plain restorations to stand beside every learnt one: filters of scikit-image, interpolation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from longseq.core.compare import Row
from longseq.vision.data.restoration import RestorationData
from longseq.vision.models.serpent import enlarge
from longseq.vision.restoration import Restoration
from longseq.vision.shown_by_test import ShownByTest


@dataclass(frozen=True)
class Plain:
    """A restoration without training.

    Args:
        run: (image (C, h, w) of 0 to 1, sigma of its noise, setting) to the restored image of
            that size.
        settings: to choose from, on the validation images.
        mode: of the enlargement that follows where there is a scale.
    """

    run: Callable[[Tensor, float, float], Tensor]
    settings: Sequence[float] = (0.0,)
    mode: str = "bicubic"


def _as_is(image: Tensor, sigma: float, setting: float) -> Tensor:
    return image


def _bilinear(image: Tensor, sigma: float, setting: float) -> Tensor:
    """Returns an image made smaller by averaging and large again between pixels."""
    height, width = image.shape[1:]
    size = max(1, round(height / setting)), max(1, round(width / setting))
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True)
    return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0]


def _median(image: Tensor, sigma: float, setting: float) -> Tensor:
    from scipy.ndimage import median_filter

    return torch.from_numpy(median_filter(image.numpy(), (1, int(setting), int(setting))))


def _by_channels_last(image: Tensor, function: Callable[..., np.ndarray], **kwargs: Any) -> Tensor:
    with warnings.catch_warnings():  # of levels that a small image does not have
        warnings.simplefilter("ignore", UserWarning)
        found = function(image.permute(1, 2, 0).numpy(), channel_axis=-1, **kwargs)
    found = np.ascontiguousarray(found, np.float32).reshape(*image.shape[1:], len(image))
    return torch.from_numpy(found).permute(2, 0, 1)


def _nl_means(image: Tensor, sigma: float, setting: float) -> Tensor:
    from skimage.restoration import denoise_nl_means

    return _by_channels_last(
        image,
        denoise_nl_means,
        h=setting * sigma,
        sigma=sigma,
        patch_size=5,
        patch_distance=6,
        fast_mode=True,
    )


def _wavelet(image: Tensor, sigma: float, setting: float) -> Tensor:
    from skimage.restoration import denoise_wavelet

    return _by_channels_last(
        image,
        denoise_wavelet,
        sigma=setting * sigma,
        method="BayesShrink",
        convert2ycbcr=len(image) == 3,
        rescale_sigma=True,
    )


def _tv(image: Tensor, sigma: float, setting: float) -> Tensor:
    from skimage.restoration import denoise_tv_chambolle

    return _by_channels_last(image, denoise_tv_chambolle, weight=setting * sigma)


PLAIN = {
    "as_it_is": Plain(_as_is),
    "bilinear": Plain(_bilinear, (1.5, 2.0, 3.0), "bilinear"),
    "median": Plain(_median, (3, 5)),
    "nl_means": Plain(_nl_means, (0.4, 0.6, 0.8, 1.0)),
    "wavelet": Plain(_wavelet, (0.7, 1.0, 1.3)),
    "tv": Plain(_tv, (0.7, 1.0, 1.4, 2.0)),
}
"""By name."""


@dataclass(frozen=True)
class Quality:
    """Likeness to the clean images, a mean over them.

    Args:
        psnr: peak signal-to-noise ratio in dB.
        ssim: structural similarity.
    """

    psnr: float
    ssim: float


def plain_restoration(
    name: str, image: Tensor, sigma: float, scale: int, setting: float | None = None
) -> Tensor:
    """Returns an image restored by a baseline, cut to values of 0 to 1.

    Args:
        name: one of ``PLAIN``.
        image: (C, h, w).
        sigma: standard deviation of its noise.
        scale: by which it is enlarged afterwards.
        setting: of the baseline; its first if None.
    """
    one = PLAIN[name]
    filtered = image
    # Without noise there is nothing to filter, and all that is left is the enlargement.
    if sigma > 0 and not (scale > 1 and name == "bilinear"):
        filtered = one.run(image, sigma, one.settings[0] if setting is None else setting)
    return enlarge(filtered[None].float(), scale, one.mode)[0].clamp(0, 1)


def quality(restored: Tensor, clean: Tensor) -> Quality:
    """Returns how like an image is to the clean one.

    Args:
        restored: (C, H, W).
        clean: (C, H, W).
    """
    ssim = structural_similarity_index_measure(restored[None], clean[None], data_range=1.0)
    assert isinstance(ssim, Tensor)
    return Quality(
        float(peak_signal_noise_ratio(restored, clean, data_range=1.0, dim=(0, 1, 2))), float(ssim)
    )


class RestorationComparison(ShownByTest):
    """Peak signal-to-noise ratio on the test images beside plain restorations.

    Those are told the true deviation of the noise, which the model is not, and their settings are
    chosen on the validation images.

    Args:
        data: with test images.
        scale: of the model.
    """

    shows = "restorations"
    baselines = PLAIN
    score = "psnr"
    columns = {"model": "", "kind": "", "psnr": ".4f", "ssim": ".4f", "seed": "d", "verdict": ""}
    lower_is_better = False

    def __init__(self, data: RestorationData) -> None:
        self.data, self.scale = data, data.scale
        noisy = data.noise[1] > 0
        filters = [name for name in PLAIN if name not in ("as_it_is", "bilinear")]
        self.at_test = ["as_it_is", "bilinear", *(filters if noisy else [])]

    @classmethod
    def of_test(cls, task: Any, data: Any) -> RestorationComparison | None:
        if not (isinstance(task, Restoration) and isinstance(data, RestorationData)):
            return None
        return cls(data) if len(data.parts["test"]) else None

    @property
    def metric(self) -> str:
        return "dB PSNR"

    @property
    def title(self) -> str:
        low, high = self.data.noise
        noise = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        what = [f"noise {noise} of the range"] if high else []
        what += [f"{self.scale} times smaller"] if self.scale > 1 else []
        return f"{len(self.data.parts['test'])} test images, {', '.join(what)}"

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        return self._row("serpent", "model", Quality(metrics["psnr"], metrics["ssim"]), "")

    def baseline(self, name: str) -> list[Row]:
        one = PLAIN[name]
        setting = one.settings[0]
        if len(one.settings) > 1 and self.data.noise[1] > 0:
            scores = [self._mean(name, value, "valid").psnr for value in one.settings]
            setting = one.settings[int(np.argmax(scores))] if len(scores) else setting
        larger = {"as_it_is": "bicubic", "bilinear": "bilinear"}
        shown = larger.get(name, f"{name}, bicubic") if self.scale > 1 else name
        note = f"setting {setting:g}" if setting else ""
        return [self._row(shown, "baseline", self._mean(name, setting, "test"), note)]

    def _mean(self, name: str, setting: float, part: str) -> Quality:
        found = []
        for batch in self.data.evaluation(part):
            for image, clean, sigma in zip(batch["image"], batch["target"], batch["sigma"]):
                restored = plain_restoration(name, image, float(sigma), self.scale, setting)
                found.append(quality(restored, clean))
        if not found:
            return Quality(float("-inf"), float("-inf"))
        return Quality(
            *(float(np.mean([getattr(q, key) for q in found])) for key in ("psnr", "ssim"))
        )

    def _row(self, name: str, kind: Any, found: Quality, note: str) -> Row:
        return Row(name, kind, found.psnr, numbers={"ssim": found.ssim}, state=(found.ssim, note))

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        ssim, note = rows[0].state
        return {"SSIM": f"{ssim:.4f}", "chosen": note}
