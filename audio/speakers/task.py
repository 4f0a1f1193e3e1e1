"""The task of speakers: which of the enrolled voices is heard in which frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAveragePrecision

from longseq.audio.speakers.loconet import LoCoNet
from longseq.core.training.task import BaseTask

_AROUND = 25  # frames (0.5 s) to either side, that the plain similarity is averaged over


def similarity(level: Tensor, known: Tensor) -> Tensor:
    """Returns how alike each speaker's mean spectrum is to the recording's around every frame,
    (B, S, T): the plain baseline.

    The cosine of log mel spectra, weighted by loudness, each less the mean of all speakers', times
    the probability that anybody speaks, a logistic function of the frame's level.

    Args:
        level: log mel power of the recording (B, M, T).
        known: of the speakers' pieces (B, S, M, T').
    """
    loud = known.mean(-2, keepdim=True).softmax(-1)
    spectra = (known * loud).sum(-1)  # (B, S, M)
    centre = spectra.mean(1, keepdim=True)
    own = level.mean(1, keepdim=True)  # (B, 1, T)
    weight = own.exp()
    size = 2 * _AROUND + 1

    def smooth(x: Tensor) -> Tensor:
        return F.avg_pool1d(x, size, 1, _AROUND, count_include_pad=False)

    around = smooth(level * weight) / smooth(weight).clamp(min=1e-6)
    cosine = F.cosine_similarity(
        around.unsqueeze(1) - centre[..., None], (spectra - centre)[..., None], dim=2
    )
    somebody = torch.sigmoid(own - own.mean(-1, keepdim=True))
    return (1 + cosine) / 2 * somebody


class SpeakerPrecision(Metric):
    """Average precision of the frames of all speakers, as of active speaker detection.

    Args:
        plain: of the plain similarity in place of the model.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.plain, self.own = plain, BinaryAveragePrecision(thresholds=1000)

    def update(self, score: Tensor, plain: Tensor, heard: Tensor) -> None:
        """Takes a batch: probabilities of the model and of the baseline, and the truth (B, S,
        T)."""
        self.own.update((plain if self.plain else score).flatten(), heard.flatten().long())

    def compute(self) -> Tensor:
        """Returns it."""
        found: Tensor = self.own.compute()
        return found

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self.own.reset()


class DiarisationError(Metric):
    """Missed speech, false alarms and confusions over all speech: Σ_t (max(R_t, H_t) - C_t) / Σ R.

    R_t speakers are heard in frame t, H_t are said to be, C_t of them rightly.

    Args:
        threshold: of the probability.
    """

    higher_is_better = False
    full_state_update = False
    wrong: Tensor
    speech: Tensor

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold
        for name in ("wrong", "speech"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, score: Tensor, plain: Tensor, heard: Tensor) -> None:
        """Takes a batch: probabilities of the model (B, S, T) and the truth."""
        said = score > self.threshold
        most = torch.maximum(said.sum(1), heard.sum(1))
        self.wrong += (most - (said & heard).sum(1)).sum().double()
        self.speech += heard.sum().double()

    def compute(self) -> Tensor:
        """Returns it; 0 where nobody speaks and nobody is said to."""
        return self.wrong / self.speech.clamp(min=1)


class ActiveSpeakers(BaseTask):
    """Which of several enrolled speakers talks when (arXiv 2301.08237, on sound alone).

    Args:
        model_kwargs: hyper-parameters of ``LoCoNet``.
        sample_rate: Hz; that of the data.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "conversations"
    defaults = {"lr": 2e-3, "weight_decay": 0.01, "warmup_steps": 30, "min_lr_ratio": 0.05}

    def __init__(
        self,
        model_kwargs: dict[str, Any] | None = None,
        sample_rate: int = 8000,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.model = LoCoNet(**{"sample_rate": sample_rate, **(model_kwargs or {})})
        self.sample_rate = sample_rate

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns average precision, that of the plain similarity, and the diarisation error."""
        return {
            "average_precision": SpeakerPrecision(),
            "average_precision_of_similarity": SpeakerPrecision(plain=True),
            "diarisation_error": DiarisationError(),
        }

    def forward(self, audio: Tensor, voices: Tensor, power: Tensor | None = None) -> Tensor:
        """Returns log-odds (B, S, T) of recordings (B, N) and voices (B, S, M), see ``LoCoNet``."""
        logits: Tensor = self.model(audio, voices, power)
        return logits

    def compute(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """See ``BaseTask.compute``."""
        heard = batch["heard"]
        logits = self(batch["audio"], batch["voices"])
        loss = self.criterion(logits, heard.to(logits), F.binary_cross_entropy_with_logits)
        out = {"loss": loss, "count": len(heard), "score": logits.detach().sigmoid()}
        known = self.model.levels(batch["voices"].flatten(0, 1))
        known = known.unflatten(0, batch["voices"].shape[:2])
        plain = similarity(self.model.levels(batch["audio"]), known)
        return {**out, "plain": plain, "heard": heard, "pair": (logits, heard)}
