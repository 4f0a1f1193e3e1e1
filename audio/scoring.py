"""Scoring recordings: every file streamed through a detector, with a verdict and its reason."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longseq.audio.calibration import (
    NO_SIGN,
    SYNTHETIC,
    UNCERTAIN,
    UNREADABLE,
    UNSCORABLE,
    Calibration,
    Segment,
)
from longseq.audio.data.reading import AudioStream, UnscorableError
from longseq.core.checks import check_positive
from longseq.core.errors import DataError

# Below the first there is no score at all, below the second no verdict.
SHORTEST, SHORT = 1.0, 5.0
# Below the last bit of 32 there is nothing but what rounding leaves.
QUIETEST = 2.0**-31


@dataclass(frozen=True)
class Heard:
    """What a detector found in a recording.

    Args:
        segments: of the recording, in order.
        peak: largest absolute sample.
        logit: log-odds of the whole; the segments' mean by weight if None.
        evidence: what spoke, in words and numbers.
        unlike: why the recording is not like the music that the detector knows; empty if it is.
    """

    segments: list[Segment]
    peak: float
    logit: float | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    unlike: str = ""


class Detector(Protocol):
    """What a scan needs of a detector."""

    calibration: Calibration
    methods: list[str]
    rate: int | None
    """Sample rate of the audio that it takes, Hz; None for each file's own."""

    def listen(self, stream: AudioStream) -> Heard:
        """Goes through a recording in constant memory."""


@dataclass(frozen=True)
class FileScore:
    """The score of one file, or why there is none.

    Args:
        file: its path as it is to be shown.
        seconds: duration that was decoded, s; 0 if nothing was.
        probability: calibrated, that it is synthetic; None if there is none.
        verdict: "synthetic", "no sign", "uncertain", "unscorable" or "unreadable".
        reason: for the verdict, in words.
        segments: (start in s, end in s, probability) of every segment, in order.
        tags: artist and title, where the file names them.
        evidence: what spoke, from the detector.
    """

    file: str
    seconds: float
    probability: float | None
    verdict: str
    reason: str
    segments: list[tuple[float, float, float]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, known: dict[str, Any]) -> FileScore:
        """Makes one from ``to_dict``."""
        return cls(**{**known, "segments": [(a, b, p) for a, b, p in known["segments"]]})


def shown_name(path: str | Path) -> str:
    r"""Returns a name that can be shown and stored anywhere.

    Bytes that are not UTF-8 and control characters appear as ``\xe9``.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def song_logit(segments: list[Segment]) -> float:
    """Returns a recording's log-odds: the mean of its segments', by weight."""
    weights = np.array([segment.weight for segment in segments])
    return float(np.average([segment.logit for segment in segments], weights=weights))


def score_file(detector: Detector, path: str | Path, name: str | None = None) -> FileScore:
    """Streams a file through a detector, in constant memory; a file that has no score says why.

    Args:
        detector: in evaluation mode.
        path: the file.
        name: as it is to be shown; the path if None.
    """
    shown = shown_name(path) if name is None else name
    stream = None
    try:
        stream = AudioStream(path, detector.rate)
        heard = detector.listen(stream)
    except (DataError, OSError) as error:
        reason = shown_name(str(error).removeprefix(f"{path}: "))
        verdict = UNSCORABLE if isinstance(error, UnscorableError) else UNREADABLE
        return FileScore(shown, stream.seconds if stream else 0.0, None, verdict, reason)
    seconds, notes, tags = stream.seconds, stream.notes, stream.info.tags

    def unscorable(why: str) -> FileScore:
        reason = "; ".join([why, *notes])
        return FileScore(shown, seconds, None, UNSCORABLE, reason, tags=tags)

    if heard.peak < QUIETEST and seconds >= SHORTEST:
        return unscorable("silent: nothing to judge")
    if seconds < SHORTEST or not heard.segments:
        samples = f"{stream.frames_read} sample{'s' if stream.frames_read != 1 else ''}"
        return unscorable(f"{samples} ({seconds:.4g} s): too short for a score")
    bad = [part for part in heard.segments if not math.isfinite(part.logit)]
    logit = song_logit(heard.segments) if heard.logit is None else heard.logit
    if bad or not math.isfinite(logit):
        where = f"from second {bad[0].start:.1f}: " if bad else ""
        level = f"samples reach {heard.peak:.3g} times full scale" if heard.peak > 1e3 else ""
        return unscorable(f"{where}no finite score{', ' if level else ''}{level}")
    calibration = detector.calibration
    probability = calibration.probability(logit)
    parts = [(part.start, part.end, calibration.probability(part.logit)) for part in heard.segments]
    verdict = UNCERTAIN if seconds < SHORT else calibration.verdict(probability)
    reason = _reason(calibration, probability, verdict, [p for _, _, p in parts], seconds)
    # Of a file that is too short for a verdict, too, only what its score bears out.
    if heard.evidence.get("words") and calibration.verdict(probability) != NO_SIGN:
        reason = f"{reason}; {heard.evidence['words']}"
    if heard.unlike and verdict != UNCERTAIN:
        verdict, reason = UNCERTAIN, f"{heard.unlike}: {probability:.2f} says little"
    reason = "; ".join([reason, *notes])
    return FileScore(shown, seconds, probability, verdict, reason, parts, tags, heard.evidence)


def _score_any(detector: Detector, path: Path, name: str) -> FileScore:
    """Scores a file of a collection, where nothing that one file does may end the scan."""
    try:
        return score_file(detector, path, name)
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {shown_name(str(error))}"
        return FileScore(name, 0.0, None, UNREADABLE, reason)


def score_files(
    detector: Detector, files: Sequence[Path], folder: Path, workers: int = 1
) -> Iterator[FileScore]:
    """Yields the scores of files in order, several at a time; they do not depend on how many.

    Args:
        detector: in evaluation mode.
        files: to score.
        folder: that their names are relative to.
        workers: files at a time, each on one thread; decoding and the model leave Python's lock.
    """
    torch = sys.modules.get("torch")  # only some detectors need it
    threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    waiting: deque[Future[FileScore]] = deque()
    pool = ThreadPoolExecutor(check_positive("--workers", workers))
    try:
        for file in files:
            name = shown_name(file.relative_to(folder))
            waiting.append(pool.submit(_score_any, detector, file, name))
            # No more than this ahead, so that memory does not grow with the collection.
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if torch:
            torch.set_num_threads(threads)


def _reason(
    calibration: Calibration, probability: float, verdict: str, parts: list[float], seconds: float
) -> str:
    low, high = calibration.low, calibration.high
    if not calibration.windows:
        return "the detector is not calibrated: train it with validation songs"
    if seconds < SHORT:
        return f"{seconds:.1f} s are too short for a verdict"
    if verdict == UNCERTAIN:
        return f"{probability:.2f} lies in the uncertain band, {low:.2f} to {high:.2f}"
    loud = sum(p > high for p in parts)
    if verdict == SYNTHETIC:
        found = _compared(probability, ">", high)
        return f"{found}; {loud} of {len(parts)} segments alone say so"
    assert verdict == NO_SIGN
    found = _compared(probability, "<", low)
    return f"{found}: no sign of the methods it was trained on; others may go unseen"


def _compared(one: float, sign: str, other: float) -> str:
    """Returns two numbers with as many digits as tell them apart, from two to six."""
    for digits in range(2, 7):
        texts = f"{one:.{digits}f}", f"{other:.{digits}f}"
        if texts[0] != texts[1]:
            break
    return f"{texts[0]} {sign} {texts[1]}"
