"""Scoring recordings: every file streamed through a detector, with a verdict and the reason for
it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from longseq.audio.calibration import NO_SIGN, SYNTHETIC, UNCERTAIN, Calibration
from longseq.audio.data.reading import AudioStream
from longseq.audio.familiarity import SECONDS, profile
from longseq.audio.models.detector import Segment
from longseq.audio.task import SongDetector
from longseq.core.checks import check_positive
from longseq.core.errors import DataError

UNREADABLE = "unreadable"
# Below the first there is no score at all, below the second no verdict.
SHORTEST, SHORT = 1.0, 5.0


@dataclass(frozen=True)
class FileScore:
    """The score of one file, or why there is none.

    Args:
        file: its path as it is to be shown.
        seconds: duration that was decoded, s; 0 if nothing was.
        probability: calibrated, that it is synthetic; None if there is none.
        verdict: "synthetic", "no sign", "uncertain" or "unreadable".
        reason: for the verdict, in words.
        segments: of the file, in order.
        segment_probabilities: of every segment.
    """

    file: str
    seconds: float
    probability: float | None
    verdict: str
    reason: str
    segments: list[Segment] = field(default_factory=list)
    segment_probabilities: list[float] = field(default_factory=list)


def song_logit(segments: list[Segment]) -> float:
    """Returns a recording's log-odds: the mean of its segments', by weight."""
    weights = np.array([segment.weight for segment in segments])
    return float(np.average([segment.logit for segment in segments], weights=weights))


def score_file(task: SongDetector, path: str | Path, name: str | None = None) -> FileScore:
    """Streams a file through a detector, in constant memory; a file that cannot be read says why.

    Args:
        task: in evaluation mode.
        path: the file.
        name: as it is to be shown; the path if None.
    """
    shown = str(path) if name is None else name
    peak, failure, stream = 0.0, "", None
    segments: list[Segment] = []
    distances: list[float] = []
    window = round(SECONDS * task.model.sample_rate)
    mel = copy.deepcopy(task.mel).cpu()

    def chunks(source: AudioStream) -> Iterator[np.ndarray]:
        nonlocal peak
        rest = np.zeros(0, np.float32)
        for chunk in source:
            peak = max(peak, float(np.abs(chunk).max()))
            rest = np.concatenate((rest, chunk))
            while len(rest) >= window:
                measure(rest[:window])
                rest = rest[window:]
            yield chunk
        if not distances and len(rest):
            measure(rest)

    def measure(audio: np.ndarray) -> None:
        if task.familiarity is not None:
            rows = profile(torch.from_numpy(audio)[None], mel)
            distances.append(float(task.familiarity.distance(rows)[0]))

    try:
        stream = AudioStream(path, task.model.sample_rate)
        segments = list(task.model.segments(chunks(stream)))
    except DataError as error:
        failure = str(error).removeprefix(f"{path}: ")
    if failure or stream is None:
        return FileScore(shown, stream.seconds if stream else 0.0, None, UNREADABLE, failure)
    seconds, notes = stream.seconds, stream.notes
    if seconds < SHORTEST or not segments:
        samples = f"{stream.frames_read} sample{'s' if stream.frames_read != 1 else ''}"
        notes.insert(0, f"{samples} ({seconds:.4g} s): too short for a score")
        return FileScore(shown, seconds, None, UNCERTAIN, "; ".join(notes))
    if peak == 0.0:
        return FileScore(
            shown, seconds, None, UNCERTAIN, "; ".join(["silent: nothing to judge", *notes])
        )
    calibration = task.calibration
    probability = calibration.probability(song_logit(segments))
    parts = [calibration.probability(segment.logit) for segment in segments]
    verdict = UNCERTAIN if seconds < SHORT else calibration.verdict(probability)
    reason = _reason(calibration, probability, verdict, parts, seconds)
    distance = float(np.mean(distances)) if distances else 0.0
    if verdict != UNCERTAIN and task.familiarity is not None and distance > task.familiarity.limit:
        verdict = UNCERTAIN
        reason = (
            f"unlike the music that the detector learnt from (distance {distance:.1f}, limit "
            f"{task.familiarity.limit:.1f}): {probability:.2f} says little"
        )
    return FileScore(
        shown, seconds, probability, verdict, "; ".join([reason, *notes]), segments, parts
    )


def score_files(
    task: SongDetector, files: Sequence[Path], folder: Path, workers: int = 1
) -> Iterator[FileScore]:
    """Yields the scores of files in order, several at a time; they do not depend on how many.

    Args:
        task: in evaluation mode.
        files: to score.
        folder: that their names are relative to.
        workers: files at a time, each on one thread; decoding and the model both leave Python's
            lock.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(check_positive("--workers", workers)) as pool:
            yield from pool.map(
                lambda file: score_file(task, file, str(file.relative_to(folder))), files
            )
    finally:
        torch.set_num_threads(threads)


def _reason(
    calibration: Calibration, probability: float, verdict: str, parts: list[float], seconds: float
) -> str:
    if not calibration.windows:
        return "the detector is not calibrated: train it with validation songs"
    if seconds < SHORT:
        return f"{seconds:.1f} s are too short for a verdict"
    if verdict == UNCERTAIN:
        band = f"{calibration.low:.2f} to {calibration.high:.2f}"
        return f"{probability:.2f} lies in the uncertain band, {band}"
    high = sum(p > calibration.high for p in parts)
    if verdict == SYNTHETIC:
        alone = f"{high} of {len(parts)} segments alone say so"
        return f"{probability:.2f} > {calibration.high:.2f}; {alone}"
    assert verdict == NO_SIGN
    return (
        f"{probability:.2f} < {calibration.low:.2f}: no sign of the methods it was trained on; "
        "others may go unseen"
    )
