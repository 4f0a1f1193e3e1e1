"""What holds for every test: property tests know no clock; the run ends with what was skipped, and
why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from pickle import Pickler
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from longseq.core.process import heed
from longseq.core.training.loader import StepLoader

# A busy machine must fail no property test: neither a deadline nor "generating data is too slow".
settings.register_profile("longseq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("longseq")

heed()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names bytes by their argument, not by what they hold: a packed file holds the time of its
    making, and every worker must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class _Travelling(Pickler):
    """Pickles into nothing, and refuses what drags the run and its model along."""

    def __init__(self) -> None:
        super().__init__(self, protocol=5)

    def write(self, content: Any) -> int:
        return memoryview(content).nbytes

    def reducer_override(self, obj: object) -> Any:
        assert not isinstance(obj, LightningDataModule | LightningModule | Trainer), type(obj)
        return NotImplemented


@pytest.fixture(autouse=True)
def batches_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever makes our batches can be sent to a worker process that is no copy of this one, as
    everywhere but on Linux before Python 3.14, and alone."""
    made = StepLoader.__init__

    def checked(self: StepLoader, dataset: Any, *args: Any, **kwargs: Any) -> None:
        if type(dataset).__module__.startswith("longseq."):
            _Travelling().dump(dataset)
        made(self, dataset, *args, **kwargs)

    monkeypatch.setattr(StepLoader, "__init__", checked)


def skipped_by_reason(reports: Iterable[Any]) -> list[str]:
    """Returns a line per reason for which tests were skipped, the most frequent first.

    Args:
        reports: of pytest, with the reason as the last part of ``longrepr``.
    """
    reasons = Counter(
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        .removeprefix("Skipped: ")
        .strip()
        for report in reports
    )
    return [f"{count:5d}  {reason}" for reason, count in reasons.most_common()]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what was skipped, grouped by reason."""
    lines = skipped_by_reason(terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("skipped, and why")
        for line in lines:
            terminalreporter.write_line(line)
