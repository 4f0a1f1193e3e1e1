"""What makes batches goes to worker processes that are no copies of this one, or is refused."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest

from longseq.core.errors import ConfigError
from longseq.core.training.loader import EpochBatches, step_dataloader


@pytest.fixture
def spawned() -> Iterator[None]:
    """Worker processes begin anew, as on macOS and Windows; with Python 3.14 on Linux nearly so."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_batches_are_the_same_in_a_process_that_begins_anew(spawned: None) -> None:
    made = EpochBatches(np.arange(10), 4, 0, np.add)
    alone, other = (list(step_dataloader(made, 3, made.per_epoch, n)) for n in (0, 1))
    assert len(alone) == len(other) == 1
    assert np.array_equal(alone[0], other[0])


def test_what_cannot_be_sent_is_named(spawned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the law of all tests, which would be the first to say so
    made = EpochBatches(np.arange(10), 4, 0, lambda rows, epoch: rows)
    assert len(list(step_dataloader(made, 0, made.per_epoch))) == 2
    with pytest.raises(ConfigError, match=r"\(EpochBatches: .*lambda.*set data.num_workers to 0"):
        next(iter(step_dataloader(made, 0, made.per_epoch, 1)))
