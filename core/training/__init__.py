"""Training machinery shared by every domain: the base task, its recipe, ``fit``, loader,
callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.core.training.loading import load_data, load_task
    from longseq.core.training.run import Run, fit
    from longseq.core.training.task import BaseTask

_EXPORTS = {
    "BaseTask": "longseq.core.training.task",
    "Run": "longseq.core.training.run",
    "fit": "longseq.core.training.run",
    "load_data": "longseq.core.training.loading",
    "load_task": "longseq.core.training.loading",
}
__all__ = ["BaseTask", "Run", "fit", "load_data", "load_task", "seed_everything"]
__getattr__ = lazy(__name__, _EXPORTS)


def seed_everything(seed: int = 0) -> int:
    """Seeds the random generators as the command line does; call it before the task is made.

    Args:
        seed: of torch, numpy and Python.

    Returns:
        The seed.
    """
    from lightning.pytorch import seed_everything as seed_all

    return int(seed_all(seed, workers=True))
