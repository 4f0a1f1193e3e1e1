"""One way to be stopped and to go on: Lightning's own signals and requeued checkpoints, of a SLURM
job, are turned off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from longseq.core.process import part_workers


class _NoSignals(_SignalConnector):
    """Leaves signals to ``guards.StopOnSignal`` and the command line. Under SLURM Lightning's would
    take SIGUSR1, write ``hpc_ckpt_1.ckpt`` beside the runs' folders and requeue the job itself; of
    many ranks its SIGTERM waits for all others in the handler."""

    def register_signal_handlers(self) -> None:
        """Registers none."""


class _Named(_CheckpointConnector):
    """Resumes what is named and nothing else: Lightning's would take up the ``hpc_ckpt_…`` of any
    other run that was written into the same folder."""

    def _parse_ckpt_path(
        self, state_fn: Any, ckpt_path: str | Path | None, *args: Any, **kwargs: Any
    ) -> Any:
        if ckpt_path is None and state_fn == "fit":
            return None
        return super()._parse_ckpt_path(state_fn, ckpt_path, *args, **kwargs)

    @property
    def _hpc_resume_path(self) -> None:
        return None

    def restore_model(self) -> None:
        """Restores weights into a model of their own kind: Lightning makes it one of float64
        (``precision="64-true"``) after they are there, rounded to float32."""
        if self._loaded_checkpoint:
            self.trainer.precision_plugin.convert_module(self.trainer.lightning_module)
        super().restore_model()


def stopped_by_us(trainer: Trainer) -> Trainer:
    """Returns a trainer that has not run yet, which neither takes signals by itself nor resumes
    what nobody named, and whose workers get none.

    Args:
        trainer: newly made.
    """
    part_workers()
    trainer._signal_connector = _NoSignals(trainer)
    trainer._checkpoint_connector = _Named(trainer)
    return trainer
