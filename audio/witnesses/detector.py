"""The packaged detector: several witnesses, each calibrated by itself, under one false-positive
rate."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from longseq.audio.calibration import Calibration, Segment
from longseq.audio.data.reading import AudioStream
from longseq.audio.scoring import QUIETEST, Heard
from longseq.audio.witnesses.comb import Comb
from longseq.audio.witnesses.pieces import Averages, cut
from longseq.audio.witnesses.sequence import frequency_model, sequence_features
from longseq.audio.witnesses.spectrum import RATE, bandwidth
from longseq.audio.witnesses.texture import FEATURES, known, texture
from longseq.core.arrays import check_arrays, write_arrays
from longseq.core.errors import ConfigError, DataError

# Texture changes slowly: the first of so many segments is measured, and the first of all.
_EVERY = 3
_SHORTEST = 8192
_BANDS = 16
NAMES = ("comb", "moved comb", "sequence")
# What these three hear together: the sum of their rarities, calibrated as a witness of its own.
AGREEMENT = "agreement"
_WORDS = {
    "comb": "lines at equal distances, as a decoder's upsampling leaves them (family unknown)",
    "moved comb": "lines at equal distances that stand still, as of a decoder at some speed",
    "sequence": "a spectrum with traces of upsampling",
    AGREEMENT: "lines at equal distances and traces of upsampling, which seldom come together",
}
_REBUILT = "a texture as of {}, a phase that was rebuilt from magnitudes"


@dataclass(frozen=True)
class Tail:
    """How often real music scores so high: the share above every value, beyond them exponential.

    Args:
        values: scores of real music, ascending.
        shares: of real music that lies above each of them.
        scale: of the exponential beyond the last.
    """

    values: list[float]
    shares: list[float]
    scale: float

    def rarity(self, score: float) -> float:
        """Returns -log₁₀ of the share of real music that scores at least so high."""
        if math.isnan(score):
            return math.nan
        last = self.values[-1]
        if score > last:
            beyond = (score - last) / self.scale
            return -math.log10(self.shares[-1]) + beyond / math.log(10)
        logs = -np.log10(self.shares)
        return float(np.interp(score, self.values, logs))

    @classmethod
    def fit(cls, scores: np.ndarray, start: float = 0.9) -> Tail:
        """Settles it on scores of real music that the witness was not trained on.

        Args:
            scores: at least 20.
            start: share of them below the exponential tail.
        """
        levels = [0.0, 0.25, 0.5, 0.75, start]
        values = np.quantile(scores, levels)
        scale = float((scores[scores > values[-1]] - values[-1]).mean())
        # Ties (scores that are often 0) would make the values equal.
        values = np.maximum.accumulate(values + 1e-9 * np.arange(len(levels)))
        shares = [1 - level if level else 1.0 for level in levels]
        return cls([float(v) for v in values], shares, max(scale, 1e-6))


@dataclass(frozen=True)
class Shape:
    """Is a recording's spectrum like that of the music that was learnt from?

    Args:
        mean: of the profiles (P,).
        basis: maps a centred profile to directions of unit variance (P, K).
        limit: largest distance at which it is.
    """

    mean: list[float]
    basis: list[list[float]]
    limit: float

    def distance(self, profile: np.ndarray) -> float:
        """Returns the Mahalanobis distance, about 1 for the music that it was fitted on."""
        return float(np.sqrt((((profile - self.mean) @ np.array(self.basis)) ** 2).mean()))

    @classmethod
    def fit(cls, profiles: np.ndarray, share: float) -> Shape:
        """Measures real music.

        Args:
            profiles: (N, P).
            share: of them within the limit.
        """
        mean = profiles.mean(0)
        _, values, directions = np.linalg.svd(profiles - mean, full_matrices=False)
        kept = values > 1e-3 * values[0]
        basis = directions[kept].T / (values[kept] / np.sqrt(len(profiles)))
        made = cls(mean.tolist(), basis.tolist(), 0.0)
        distances = [made.distance(row) for row in profiles]
        return cls(made.mean, made.basis, float(np.quantile(distances, share)))


def shape_profile(level: np.ndarray) -> np.ndarray:
    """Returns the coarse shape of a spectrum: levels of 16 bands, and the roughness of four.

    Args:
        level: dB (8193,).
    """
    edges = np.unique(np.rint(np.geomspace(20, 8193, _BANDS + 1)).astype(int))
    bands = np.array([level[a:b].mean() for a, b in pairwise(edges)])
    rough = np.array([np.abs(np.diff(level[a:b])).mean() for a, b in pairwise(edges)])
    return np.concatenate((np.maximum(bands - bands.max(), -80) / 10, rough[::4]))


def agreement(rarities: dict[str, float]) -> float:
    """Returns the sum of the rarities of comb, moved comb and sequence.

    Args:
        rarities: of every witness.
    """
    return sum(rarities[name] for name in NAMES)


class WitnessDetector:
    """Comb, sequence and texture on spectra at 44.1 kHz; what each found is the evidence.

    rarity_k = -log₁₀ (share of real music that witness k scores as high)
    e        = max_k rarity_k - log₁₀ K        (Bonferroni: one of K may speak by chance)

    One of the K is the agreement of comb, moved comb and sequence, the sum of their rarities. What
    re-encoding leaves of a decoder's lines is not rare for any of them; that all three hear it is.

    Args:
        sequence: hyper-parameters of ``FrequencyModel``.
        textures: names of the methods that there is a specialist of texture for.
        tails: of every witness: comb, moved comb, sequence and the specialists; and of the
            agreement of the first three, if it is to be heard.
        shape: of the music that was learnt from.
        calibration: of e.
        methods: that were learnt from.
        songs: groups of songs (albums, packages) of every part.
        weights: float32, by name: ``sequence.`` and those of ``FrequencyModel``; ``texture_mean``
            and ``texture_weight`` (methods, 384), ``texture_bias`` (methods,).

    Raises:
        ConfigError: without a tail of every witness.
        DataError: if the weights are not those of these settings.
    """

    rate = RATE

    def __init__(
        self,
        sequence: dict[str, Any],
        textures: list[str],
        tails: dict[str, Tail],
        shape: Shape,
        calibration: Calibration,
        methods: list[str],
        songs: dict[str, list[str]],
        weights: dict[str, np.ndarray],
    ) -> None:
        if set(tails) - {AGREEMENT} != {*NAMES, *textures}:
            raise ConfigError(f"needs a tail of every witness: {', '.join([*NAMES, *textures])}")
        self.hyper, self.textures = dict(sequence), list(textures)
        self.tails, self.shape, self.calibration = tails, shape, calibration
        self.methods, self.songs = methods, songs
        self.weights = {name: value.astype(np.float32) for name, value in weights.items()}
        own = (len(textures), FEATURES)
        shapes = {"texture_mean": own, "texture_weight": own, "texture_bias": own[:1]}
        mine = {k: v for k, v in self.weights.items() if not k.startswith("sequence.")}
        check_arrays(shapes, mine, "WitnessDetector")
        self._sequence = frequency_model(self.hyper, self._of_sequence())

    def _of_sequence(self) -> dict[str, np.ndarray]:
        start = "sequence."
        return {k[len(start) :]: v for k, v in self.weights.items() if k.startswith(start)}

    def to(self, device: str) -> WitnessDetector:
        """Has the sequence model run on another device, by torch; the rest is NumPy's.

        Args:
            device: "cpu", or one of torch's.
        """
        if device != "cpu":
            from longseq.audio.witnesses.model import run_trained

            self._sequence = run_trained(self.hyper, self._of_sequence(), device)
        return self

    def scores(
        self, level: np.ndarray, textures: np.ndarray | None, comb: Comb | None = None
    ) -> dict[str, float]:
        """Returns the score of every witness that there is evidence for.

        Args:
            level: dB (8193,).
            textures: features (384,); None if they were not measured.
            comb: found in the spectrum; None to leave the combs out.
        """
        features = sequence_features(level)
        found = {"sequence": self._sequence(features)}
        if comb is not None:
            found |= {"comb": comb.score, "moved comb": comb.moved}
        else:
            found["comb"] = float(features[2].max() * 5)
        if textures is not None:
            # Bands that hold nothing say nothing.
            x = (textures - self.weights["texture_mean"]) * known(bandwidth(level))
            values = (x * self.weights["texture_weight"]).sum(1) + self.weights["texture_bias"]
            found |= dict(zip(self.textures, values.tolist()))
        return found

    def rarities(self, scores: dict[str, float]) -> dict[str, float]:
        """Returns the rarity of every score, and of the agreement where there is one.

        Args:
            scores: of ``scores``.
        """
        found = {name: self.tails[name].rarity(score) for name, score in scores.items()}
        if AGREEMENT in self.tails and found.keys() >= set(NAMES):
            found[AGREEMENT] = self.tails[AGREEMENT].rarity(agreement(found))
        return found

    def evidence(self, scores: dict[str, float]) -> tuple[float, str]:
        """Returns e, and the witness whose score is the rarest."""
        rarities = self.rarities(scores)
        if any(math.isnan(value) for value in rarities.values()):
            return math.nan, ""
        name = max(rarities, key=lambda key: rarities[key])
        return rarities[name] - math.log10(len(self.tails)), name

    def listen(self, stream: AudioStream) -> Heard:
        """Goes through a recording in constant memory.

        Args:
            stream: at 44.1 kHz.
        """
        peak, done, averages = 0.0, 0, Averages()
        textures, measured = 0.0, 0.0
        segments: list[Segment] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for number, audio in enumerate(cut(stream)):
                loudest = float(np.abs(audio).max())
                peak = max(peak, loudest)
                start, done = done, done + len(audio)
                if loudest < QUIETEST:
                    continue
                weight, own = float(len(audio)), None
                mine, moved = averages.add(audio)
                if (number % _EVERY == 0 or not measured) and len(audio) >= _SHORTEST:
                    own = texture(audio)
                    textures, measured = textures + weight * own, measured + weight
                if not np.isfinite(mine).all():
                    logit = math.nan
                else:
                    scores = self.scores(mine, own) | {"moved comb": moved}
                    logit, _ = self.evidence(scores)
                segments.append(Segment(start / RATE, done / RATE, logit, weight))
        mean = averages.level
        if mean is None:
            return Heard(segments, peak)
        comb = averages.comb()
        texts = None if not measured else np.asarray(textures / measured, dtype=np.float32)
        scores = self.scores(mean, texts, comb)
        e, name = self.evidence(scores)
        return Heard(segments, peak, e, self._told(name, scores, comb), self._unlike(averages))

    def window_scores(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Returns e of every row.

        Args:
            audio: samples (B, N).
            rate: Hz.
        """
        import soxr

        found = []
        for row in audio:
            x = row if rate == RATE else soxr.resample(row, rate, RATE)
            averages = Averages()
            for piece in cut([x]):
                averages.add(piece)
            if averages.level is None:
                found.append(math.nan)
                continue
            own = texture(x) if len(x) >= _SHORTEST else None
            found.append(self.evidence(self.scores(averages.level, own, averages.comb()))[0])
        return np.array(found)

    def _told(self, name: str, scores: dict[str, float], comb: Comb) -> dict[str, Any]:
        words = _WORDS.get(name) or _REBUILT.format(name.replace("_", " "))
        if name in ("comb", "moved comb", AGREEMENT):
            shown = ", ".join(f"{f:.0f}" for f, _ in sorted(comb.lines[:5]))
            words = f"{words}: every {comb.spacing:.1f} Hz, clearest at {shown} Hz"
        return {
            "witness": name,
            "words": words,
            "rarity": {key: round(value, 2) for key, value in self.rarities(scores).items()},
            "spacing_hz": round(comb.spacing, 2),
            "lines": [[round(f, 1), round(height, 1)] for f, height in comb.lines[:12]],
        }

    def _unlike(self, averages: Averages) -> str:
        level = averages.level
        if level is None:
            return ""
        distance = self.shape.distance(shape_profile(level))
        if distance <= self.shape.limit:
            return averages.odd
        return (
            f"unlike the music that the detector knows (distance {distance:.1f}, limit "
            f"{self.shape.limit:.1f})"
        )

    def save(self, path: str | Path) -> None:
        """Writes the detector as safetensors.

        Args:
            path: ending in .safetensors.
        """
        known = {
            "_class_path": "longseq.audio.witnesses.detector.WitnessDetector",
            "sequence": self.hyper,
            "textures": self.textures,
            "tails": {name: asdict(tail) for name, tail in self.tails.items()},
            "shape": asdict(self.shape),
            "calibration": self.calibration.to_dict(),
            "methods": self.methods,
            "songs": self.songs,
        }
        write_arrays(path, self.weights, known)

    @classmethod
    def load(
        cls, weights: dict[str, np.ndarray], known: dict[str, Any], file: Path
    ) -> WitnessDetector:
        """Makes one of a file's weights and metadata.

        Args:
            weights: by name.
            known: the metadata.
            file: for messages.

        Raises:
            DataError: if they do not fit.
        """
        try:
            return cls(
                known["sequence"],
                list(known["textures"]),
                {name: Tail(**tail) for name, tail in known["tails"].items()},
                Shape(**known["shape"]),
                Calibration(**known["calibration"]),
                list(known["methods"]),
                dict(known["songs"]),
                weights,
            )
        except DataError as error:
            raise DataError(str(error), path=file) from error
        except (TypeError, KeyError, AttributeError, ConfigError) as error:
            raise DataError(f"its hyper-parameters do not fit: {error}", path=file) from error
