"""The training task of audio: is a recording real or synthetic?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC

from longseq.audio.calibration import Calibration, calibrate
from longseq.audio.data.module import SongData
from longseq.audio.data.reading import AudioStream
from longseq.audio.familiarity import SECONDS, Familiarity, fit_familiarity, profile
from longseq.audio.features import MelPower
from longseq.audio.models.registry import create_model, load_published
from longseq.audio.scoring import Heard
from longseq.core.errors import ConfigError
from longseq.core.training.facts import Fact
from longseq.core.training.task import BaseTask


class SongDetector(BaseTask):
    """Real or synthetic, from audio; calibrated after every validation on the validation songs
    alone.

    Calibration, the methods that were seen, and the songs of every part travel in the checkpoint.

    Args:
        model: one of ``longseq.audio.list_models()``.
        model_kwargs: hyper-parameters of the model.
        checkpoint: published SpecTTTra weights to start from.
        label_smoothing: share of the probability that is spread over both classes in training.
        ranking: weight of the ranking loss of pairs, softplus(logit of the real one - logit of the
            synthetic one): the pairs are of the same place of the same song, so that only the
            synthesis differs.
        equaliser: strength of the random smooth curve over frequency that is added to the features
            in training, in their standard deviations; 0 for none. Both classes get it: how bright a
            song is says nothing.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "excerpts"
    calibration = Fact(Calibration, lambda known: Calibration(**known), Calibration.to_dict)
    familiarity = Fact(
        lambda: None,
        lambda known: Familiarity(**known) if known else None,
        lambda found: found.to_dict() if found else None,
    )
    methods = Fact(list)
    songs = Fact(dict)

    defaults = {
        "lr": 3e-3,
        "weight_decay": 0.05,
        "betas": (0.9, 0.98),
        "warmup_steps": 30,
        "min_lr_ratio": 0.02,
    }

    def __init__(
        self,
        model: str = "mamba",
        model_kwargs: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        label_smoothing: float = 0.02,
        ranking: float = 1.0,
        equaliser: float = 0.0,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if not 0 <= label_smoothing < 1 or min(equaliser, ranking) < 0:
            raise ConfigError(
                f"label_smoothing must lie in [0, 1), ranking and equaliser be at least 0, got "
                f"{label_smoothing}, {ranking} and {equaliser}"
            )
        self.model = create_model(model, **(model_kwargs or {}))
        self.start_from = checkpoint
        self.label_smoothing, self.ranking, self.equaliser = label_smoothing, ranking, equaliser
        self._seen: list[tuple[Tensor, Tensor]] = []

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the area under the ROC curve."""
        return {"auc": BinaryAUROC()}

    @property
    def mel(self) -> MelPower:
        """The mel spectrogram that the model uses."""
        return getattr(self.model, "mel", None) or self.model.ft_extractor.audio2melspec

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the log-odds (B,) that recordings (B, N) are synthetic."""
        return self.model(audio, self._curve(audio) if self.training and self.equaliser else None)

    @property
    def rate(self) -> int:
        """Sample rate of the audio that the model takes, Hz."""
        return self.model.sample_rate

    def listen(self, stream: AudioStream) -> Heard:
        """Goes through a recording in constant memory.

        Args:
            stream: at ``rate``.
        """
        peak, window = 0.0, round(SECONDS * self.rate)
        distances: list[float] = []
        mel = copy.deepcopy(self.mel).cpu()

        def measure(audio: np.ndarray) -> None:
            if self.familiarity is not None:
                rows = profile(torch.from_numpy(audio)[None], mel)
                distances.append(float(self.familiarity.distance(rows)[0]))

        def chunks() -> Iterator[np.ndarray]:
            nonlocal peak
            rest = np.zeros(0, np.float32)
            for chunk in stream:
                peak = max(peak, float(np.abs(chunk).max()))
                rest = np.concatenate((rest, chunk))
                while len(rest) >= window:
                    measure(rest[:window])
                    rest = rest[window:]
                yield chunk
            if not distances and len(rest):
                measure(rest)

        segments = list(self.model.segments(chunks()))
        unlike, distance = "", float(np.mean(distances)) if distances else 0.0
        if self.familiarity is not None and distance > self.familiarity.limit:
            unlike = (
                f"unlike the music that the detector learnt from (distance {distance:.1f}, limit "
                f"{self.familiarity.limit:.1f})"
            )
        return Heard(segments, peak, unlike=unlike)

    def _curve(self, audio: Tensor) -> Tensor:
        """Draws smooth curves over frequency (B, 1, n_mels): a few cosines of random amplitude."""
        position = torch.linspace(0, 1, self.mel.n_mels, device=audio.device)
        waves = torch.arange(1, 7, device=audio.device)
        basis = torch.cos(torch.pi * waves[:, None] * position)  # (6, n_mels)
        amplitude = self.equaliser * torch.randn(len(audio), 1, len(waves), device=audio.device)
        return amplitude / waves.sqrt() @ basis

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean cross-entropy in nats, and what the metrics need."""
        target, logits = batch["target"], self(batch["audio"]).float()
        smoothing = self.label_smoothing if self.training else 0.0
        goal = target * (1 - smoothing) + 0.5 * smoothing
        loss = self.criterion(logits, goal, F.binary_cross_entropy_with_logits)
        if self.training and self.ranking:
            # Training batches alternate: real, its synthetic version, real, …
            loss = loss + self.ranking * F.softplus(logits[::2] - logits[1::2]).mean()
        if not self.training:
            self._seen.append((logits.detach().double().cpu(), target.cpu()))
        # Log-odds mapped to (0, 1) in their order: torchmetrics would take their sigmoid in
        # float32, whose ends are ties, and in one batch but not in another.
        preds = (F.softsign(logits.detach().double()) + 1) / 2
        pair = (logits, target.long())
        return {
            "loss": loss,
            "count": len(logits),
            "preds": preds,
            "target": target.long(),
            "pair": pair,
        }

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if not isinstance(data, SongData):
            return
        if data.sample_rate != self.model.sample_rate:
            raise ConfigError(
                f"data.sample_rate is {data.sample_rate}, but the model takes "
                f"{self.model.sample_rate} Hz"
            )
        longest = getattr(self.model, "seconds", None)
        if longest is not None and max(data.clip_seconds, data.eval_seconds) > longest:
            raise ConfigError(
                f"data.clip_seconds and data.eval_seconds must be at most {longest:g}, the "
                f"model's length"
            )

    def setup(self, stage: str) -> None:
        """Also loads the weights to start from."""
        super().setup(stage)
        if stage == "fit" and self.start_from is not None:
            load_published(self.model, self.start_from)

    def on_validation_epoch_start(self) -> None:
        self._seen = []

    def on_validation_epoch_end(self) -> None:
        """Calibrates anew, before the checkpoint of this validation is written; not amid a validate
        run."""
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking or not self._seen:
            return
        logits, targets = (torch.cat(part) for part in zip(*self._seen))
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, (logits, targets))
            logits, targets = (torch.cat(part) for part in zip(*parts))
        self.calibration = calibrate(np.asarray(logits), np.asarray(targets))
        if self.familiarity is None and isinstance(self.data, SongData):
            self.familiarity = fit_familiarity(self.data, copy.deepcopy(self.mel).cpu())

    def on_test_epoch_start(self) -> None:
        self._seen = []
