"""The task of separation: the voices of a mixture, in any order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.audio import (
    permutation_invariant_training,
    scale_invariant_signal_distortion_ratio,
)

from longseq.audio.separation.models import MeanSeparator, create_separator
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.task import BaseTask

_SAME = ("voices", "sample_rate")


def best_si_sdr(estimate: Tensor, voices: Tensor) -> Tensor:
    """Returns the mean scale-invariant signal-to-distortion ratio of the best order, dB (B,).

    Args:
        estimate: (B, S, N).
        voices: the true ones (B, S, N).
    """
    best, _ = permutation_invariant_training(
        estimate, voices, scale_invariant_signal_distortion_ratio, eval_func="max"
    )
    return best


def oracle_masks(mixture: Tensor, voices: Tensor, window: int = 256) -> Tensor:
    """Returns what ideal ratio masks |S_s| / Σ |S_s| on a short-time spectrum give, (B, S, N).

    Args:
        mixture: (B, N).
        voices: the true ones (B, S, N).
        window: samples; their step is a quarter.
    """
    batch, count, length = voices.shape
    hann = torch.hann_window(window, device=mixture.device)
    settings = {"n_fft": window, "hop_length": window // 4, "window": hann}
    own = torch.stft(voices.flatten(0, 1), return_complex=True, **settings).abs()
    own = own.unflatten(0, (batch, count))
    masks = own / own.sum(1, keepdim=True).clamp(min=1e-8)
    mixed = torch.stft(mixture, return_complex=True, **settings).unsqueeze(1)
    out = torch.istft((masks * mixed).flatten(0, 1), length=length, **settings)
    return out.unflatten(0, (batch, count))


class Improvement(Metric):
    """Mean improvement of the SI-SDR over that of the mixture itself, dB.

    Args:
        oracle: of ideal ratio masks in place of the estimate: what masking can reach.
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, oracle: bool = False) -> None:
        super().__init__()
        self.oracle = oracle
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, estimate: Tensor, voices: Tensor, mixture: Tensor) -> None:
        """Takes a batch: (B, S, N), (B, S, N) and (B, N)."""
        found = oracle_masks(mixture, voices) if self.oracle else estimate
        before = scale_invariant_signal_distortion_ratio(
            mixture.unsqueeze(1).expand_as(voices), voices
        ).mean(1)
        self.total += (best_si_sdr(found, voices) - before).double().sum()
        self.count += len(mixture)

    def compute(self) -> Tensor:
        """Returns the mean."""
        return self.total / self.count


class VoiceSeparator(BaseTask):
    """The voices of a mixture, trained for their scale-invariant signal-to-distortion ratio under
    the best order (arXiv 1607.00325 for the orders, 1811.02508 for the ratio).

    Args:
        model: one of ``longseq.audio.separation.models.SEPARATORS``.
        model_kwargs: hyper-parameters of the model.
        voices: in a mixture; that of the data.
        sample_rate: Hz; that of the data.
        ceiling: dB; in training a mixture's ratio above it counts as this, so that those that are
            told apart already leave the weights to the others. None for no limit.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "mixtures"
    defaults = {"lr": 2e-3, "weight_decay": 0.0, "warmup_steps": 50, "min_lr_ratio": 0.05}

    def __init__(
        self,
        model: str = "mossformer",
        model_kwargs: dict[str, Any] | None = None,
        voices: int = 2,
        sample_rate: int = 8000,
        ceiling: float | None = None,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.ceiling = ceiling
        self.model = create_separator(model, **{"voices": voices, **(model_kwargs or {})})
        self.sample_rate = check_positive("sample_rate", sample_rate)

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the improvement, and that of ideal masks."""
        return {"si_sdri": Improvement(), "si_sdri_of_ideal_masks": Improvement(oracle=True)}

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the voices (B, S, N) of recordings (B, N)."""
        estimate: Tensor = self.model(audio)
        return estimate

    def compute(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """See ``BaseTask.compute``."""
        mixture, voices = batch["mixture"], batch["voices"]
        estimate = self(mixture)
        ratio = best_si_sdr(estimate, voices)
        if self.training and self.ceiling is not None:
            ratio = ratio.clamp(max=self.ceiling)
        return {
            "loss": -ratio.mean(),
            "count": len(mixture),
            "estimate": estimate,
            "voices": voices,
            "mixture": mixture,
            "pair": (estimate, voices),
        }


def mean_of(tasks: Sequence[VoiceSeparator]) -> VoiceSeparator:
    """Returns the mean of trained separators as one, in evaluation mode.

    Args:
        tasks: of the same number of voices and the same rate.

    Raises:
        ConfigError: if those differ.
    """
    voices, rates = ({getattr(task.hparams, key) for task in tasks} for key in _SAME)
    if len(voices) > 1 or len(rates) > 1:
        raise ConfigError(
            f"a mean needs separators of one number of voices and one rate, got {sorted(voices)} "
            f"voices at {sorted(rates)} Hz"
        )
    members = [{key: task.hparams[key] for key in ("model", "model_kwargs")} for task in tasks]
    made = VoiceSeparator("mean", {"members": members}, voices.pop(), rates.pop())
    assert isinstance(made.model, MeanSeparator)
    for one, task in zip(made.model.members, tasks):
        one.load_state_dict(task.model.state_dict())
    return made.eval()
