"""Training machinery shared by every domain: the base task, its recipe, ``fit``, loader, callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longseq.core.training.run import Run, fit
    from longseq.core.training.task import BaseTask

__all__ = ["BaseTask", "Run", "fit", "seed_everything"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the modules beside this one are wanted without Lightning, too.
    if name in ("Run", "fit"):
        from longseq.core.training import run

        return getattr(run, name)
    if name == "BaseTask":
        from longseq.core.training.task import BaseTask

        return BaseTask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def seed_everything(seed: int = 0) -> int:
    """Seeds the random generators as the command line does; call it before the task is made.

    Args:
        seed: of torch, numpy and Python.

    Returns:
        The seed.
    """
    from lightning.pytorch import seed_everything as seed_all

    return int(seed_all(seed, workers=True))
