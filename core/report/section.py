"""What a domain's demo hands over: one section of the report, made of what a reader wants to
know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longseq.core.results import Score, verdict


@dataclass(frozen=True)
class Picture:
    """A picture of a section.

    Args:
        path: PNG file.
        caption: what it shows, in a sentence.
    """

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A domain's part of the report: the question, the picture, the scores and the verdict, speed
    and files.

    Args:
        domain: its name, for example "genomics".
        question: the question that was asked of the data, in one sentence.
        data: what the data is, where it is from and under which licence, in one sentence.
        scores: the model's and every baseline's, at least one of each.
        metric: the score's name with its unit.
        speed: what was fast or slow, in words with figures.
        seconds: how long the demo took.
        pictures: at least one.
        files: what was written, for people to open.
        lower_is_better: the metric's direction.
        tie: a smaller difference is no difference.
        findings: what else was seen, in sentences with figures.
    """

    domain: str
    question: str
    data: str
    scores: Sequence[Score]
    metric: str
    speed: str
    seconds: float
    pictures: Sequence[Picture] = ()
    files: Sequence[Path] = field(default_factory=tuple)
    lower_is_better: bool = True
    tie: float = 0.0
    findings: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """How the model compares with the best baseline, in words."""
        return verdict(self.scores, self.metric, self.lower_is_better, self.tie)
