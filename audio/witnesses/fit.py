"""``longseq audio witnesses``: fits and calibrates the detector of witnesses on songs and their
resynthesised versions."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from longseq.audio.calibration import Calibration, calibrate
from longseq.audio.data.folder import list_recordings
from longseq.audio.data.reading import read_audio
from longseq.audio.witnesses.comb import Comb
from longseq.audio.witnesses.detector import (
    AGREEMENT,
    NAMES,
    Shape,
    Tail,
    WitnessDetector,
    agreement,
    shape_profile,
)
from longseq.audio.witnesses.model import FrequencyModel
from longseq.audio.witnesses.pieces import Averages, cut
from longseq.audio.witnesses.sequence import sequence_features
from longseq.audio.witnesses.simulation import add_lines
from longseq.audio.witnesses.spectrum import RATE, bandwidth
from longseq.audio.witnesses.texture import FEATURES, known, texture
from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser
from longseq.core.errors import DataError

FALSE_POSITIVES, UNCERTAIN_SHARE = 0.005, 0.05
_STRENGTH, _FOLDS = 0.01, 5


@dataclass(frozen=True)
class Measured:
    """What the witnesses see of one recording.

    Args:
        song: its name; versions of a song share it.
        group: that its song belongs to (an album, a package): never in two parts.
        method: how it was synthesised; "" for a real one.
        level: mean level of every bin, dB (8193,).
        comb: the clearest.
        texture: features (384,).
    """

    song: str
    group: str
    method: str
    level: np.ndarray
    comb: Comb
    texture: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Which features of texture lie within the recording's bandwidth."""
        return known(bandwidth(self.level))


def measure(audio: np.ndarray, song: str, group: str, method: str) -> Measured:
    """Returns what the witnesses see.

    Args:
        audio: samples (N,) at 44.1 kHz, N ≥ 8192, finite.
        song: its name.
        group: of the song.
        method: "" for a real recording.

    Raises:
        DataError: if samples are not finite.
    """
    averages = Averages()
    for piece in cut([audio]):
        averages.add(piece)
    level = averages.level
    if level is None:
        raise DataError("has samples that are not finite numbers")
    return Measured(song, group, method, level, averages.comb(), texture(audio))


def for_calibration(group: str) -> bool:
    """Returns whether a group of songs is kept out of the sequence model's training."""
    return zlib.crc32(group.encode()) % 3 == 0


def train_sequence(
    rows: Sequence[Measured], sizes: dict[str, Any], steps: int, seed: int = 0, batch: int = 16
) -> FrequencyModel:
    """Trains the model along frequency on real spectra, on simulated decoders, and on real ones.

    Args:
        rows: recordings; groups kept for calibration are left out here.
        sizes: hyper-parameters of ``FrequencyModel``.
        steps: of AdamW, cosine schedule.
        seed: of weights and draws.
        batch: spectra a step, half of them real.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    mine = [row for row in rows if not for_calibration(row.group)]
    real = [row.level for row in mine if not row.method]
    fakes = [sequence_features(row.level) for row in mine if row.method]
    features = [sequence_features(level) for level in real]
    model = FrequencyModel(**sizes).train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    target = torch.tensor([0.02, 0.98]).repeat_interleave(batch // 2)
    for step in range(steps):
        lr = 3e-3 * min(1, (step + 1) / 20) * max(0.02, 0.5 * (1 + np.cos(np.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = lr
        drawn = [features[i] for i in rng.integers(len(real), size=batch // 2)]
        for i in rng.integers(len(real), size=batch // 2):
            if fakes and rng.random() < 0.3:
                drawn.append(fakes[rng.integers(len(fakes))])
            else:
                speed = 0.012 if rng.random() < 0.4 else 0.0
                drawn.append(sequence_features(add_lines(real[i], rng, speed)))
        loss = F.binary_cross_entropy_with_logits(model(torch.from_numpy(np.stack(drawn))), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 49:
            print(f"   step {step + 1} of {steps}: loss {float(loss.detach()):.3f}")
    return model.eval()


def fit_texture(rows: Sequence[Measured]) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns mean, weights and bias of logistic regression on textures, classes weighing alike.

    Args:
        rows: real ones, and those whose phases were rebuilt.
    """
    from sklearn.linear_model import LogisticRegression

    x = np.stack([row.texture for row in rows]).astype(np.float64)
    shown = np.stack([row.shown for row in rows])
    count = np.maximum(shown.sum(0), 1)
    mean = (x * shown).sum(0) / count
    x = (x - mean) * shown
    scale = np.sqrt((x**2).sum(0) / count) + 1e-6
    y = np.array([bool(row.method) for row in rows])
    fit = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=500).fit(x / scale, y)
    return mean, fit.coef_[0] / scale, float(fit.intercept_[0])


def texture_scores(
    rows: Sequence[Measured], fit: tuple[np.ndarray, np.ndarray, float]
) -> np.ndarray:
    """Returns the scores of rows under a fit."""
    mean, weight, bias = fit
    return np.array([((row.texture - mean) * row.shown) @ weight + bias for row in rows])


def crossed_texture_scores(rows: Sequence[Measured]) -> np.ndarray:
    """Returns the score of every row by a fit that has not seen its group."""
    folds = np.array([zlib.crc32(b"fold" + row.group.encode()) % _FOLDS for row in rows])
    found = np.zeros(len(rows))
    for fold in range(_FOLDS):
        fit = fit_texture([row for row, own in zip(rows, folds) if own != fold])
        mine = np.nonzero(folds == fold)[0]
        found[mine] = texture_scores([rows[i] for i in mine], fit)
    return found


def fit_detector(
    rows: Sequence[Measured],
    model: FrequencyModel,
    sizes: dict[str, Any],
    phase_methods: Sequence[str],
) -> WitnessDetector:
    """Fits the texture and settles every tail and the band, on groups that were not trained on.

    Args:
        rows: recordings; those kept for calibration too.
        model: trained.
        sizes: its hyper-parameters.
        phase_methods: methods that rebuild phases; each gets a specialist of texture.

    Raises:
        DataError: for too few real songs to settle a threshold on.
    """
    real = [row for row in rows if not row.method]
    aside = [row for row in real if for_calibration(row.group)]
    methods = sorted({row.method for row in rows if row.method})
    textures = [name for name in phase_methods if name in methods]
    if len(aside) < 20 or not methods:
        raise DataError(
            f"{len(aside)} real songs of {len(rows)} recordings are kept to settle the threshold "
            "on; at least 20 are needed, and a synthetic version"
        )
    combs = [row.comb for row in real]
    tails = {
        "comb": Tail.fit(np.array([comb.score for comb in combs])),
        "moved comb": Tail.fit(np.array([comb.moved for comb in combs])),
        "sequence": Tail.fit(np.array([_sequence_score(model, row) for row in aside])),
    }
    together = []
    for row in aside:
        scores = (row.comb.score, row.comb.moved, _sequence_score(model, row))
        together.append(agreement({k: tails[k].rarity(v) for k, v in zip(NAMES, scores)}))
    tails[AGREEMENT] = Tail.fit(np.array(together))
    own: dict[int, dict[str, float]] = {id(row): {} for row in rows}
    fits = []
    for name in textures:
        mine = [*real, *(row for row in rows if row.method == name)]
        crossed = crossed_texture_scores(mine)
        tails[name] = Tail.fit(crossed[: len(real)])
        for row, score in zip(mine, crossed):
            own[id(row)][name] = float(score)
        fits.append(fit_texture(mine))
    shape = Shape.fit(np.stack([shape_profile(row.level) for row in real]), 0.995)
    songs = {
        "train": sorted({row.group for row in rows if not for_calibration(row.group)}),
        "valid": sorted({row.group for row in rows if for_calibration(row.group)}),
        "test": [],
    }
    weights = {f"sequence.{name}": value.numpy() for name, value in model.state_dict().items()}
    weights |= {
        f"texture_{part}": np.array([fit[i] for fit in fits], np.float32).reshape(
            len(fits), *shape_
        )
        for i, (part, shape_) in enumerate(
            (("mean", (FEATURES,)), ("weight", (FEATURES,)), ("bias", ()))
        )
    }
    made = WitnessDetector(sizes, textures, tails, shape, Calibration(), methods, songs, weights)
    # On songs that no part was trained on: textures by the crossed fits.
    tested = [row for row in rows if for_calibration(row.group)]
    e = np.array([_evidence(made, row, own[id(row)]) for row in tested])
    fitted = calibrate(e, np.array([float(bool(row.method)) for row in tested]))
    # e bounds the share of real music: the band is where that says it is, whatever the sample.
    low, high = (
        fitted.probability(-np.log10(share)) for share in (UNCERTAIN_SHARE, FALSE_POSITIVES)
    )
    made.calibration = replace(fitted, low=low, high=high, windows=len(tested))
    return made


@torch.inference_mode()
def _sequence_score(model: FrequencyModel, row: Measured) -> float:
    return float(model(torch.from_numpy(sequence_features(row.level))[None])[0])


def _evidence(detector: WitnessDetector, row: Measured, crossed: dict[str, float]) -> float:
    """Returns e of a recording, with the scores of fits that have not seen its group."""
    scores = detector.scores(row.level.astype(np.float64), row.texture, row.comb)
    return detector.evidence({**scores, **crossed})[0]


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio witnesses``."""
    parser = CommandParser(
        prog="longseq audio witnesses",
        description="Fits the packaged kind of detector on a labelled folder (real/ beside "
        "fake/METHOD/). Songs of one folder inside real/ stay together: a third of the folders is "
        "kept to settle the threshold on.",
    )
    parser.add_argument("source", help="the labelled folder")
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    parser.add_argument(
        "--phase_methods",
        default="griffin_lim,phase_vocoder",
        help="methods that rebuild phases (griffin_lim,phase_vocoder)",
    )
    parser.add_argument("--steps", type=int, default=400, help="of the sequence model (400)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a song, its start (20)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws (0)")
    args = parser.parse_args(argv)
    check_positive("--steps", args.steps)
    found, bad = list_recordings(args.source)
    for error in bad[:10]:
        print(f"note: {error}", file=sys.stderr)
    real = Path(args.source) / "real"
    groups = {item.song: str(item.path.parent.relative_to(real)) for item in found if not item.fake}
    rows = []
    for number, item in enumerate(found, 1):
        audio = read_audio(item.path, RATE, args.seconds)
        if len(audio) < RATE:
            print(f"note: {item.path}: is shorter than a second", file=sys.stderr)
            continue
        group = groups.get(item.song, item.song)
        group = group if group != "." else item.song
        try:
            rows.append(measure(audio, item.song, group, item.method))
        except DataError as error:
            print(f"note: {item.path}: {error}", file=sys.stderr)
            continue
        print(f"[{number}/{len(found)}] {item.method or 'real':<14} {item.song}")
    sizes: dict[str, Any] = {}
    model = train_sequence(rows, sizes, args.steps, args.seed)
    detector = fit_detector(rows, model, sizes, args.phase_methods.split(","))
    detector.save(args.out)
    band = detector.calibration
    print(f"{args.out}: uncertain from {band.low:.2f} to {band.high:.2f}, {band.windows} songs")
    return 0
