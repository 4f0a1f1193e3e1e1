"""Metrics of a training in low precision: their own arithmetic is not lowered."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torchmetrics import MeanSquaredError

toy = runpy.run_path(str(Path(__file__).parent / "toy.py"))


class Products(MeanSquaredError):
    """A metric by a product of matrices, which autocast lowers."""

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        super().update(target @ torch.eye(target.shape[-1]), target)


def test_metrics_are_not_computed_in_the_precision_of_the_training() -> None:
    task = toy["ToyTask"]()
    task.metrics["val"]["mse"] = Products()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", **quiet)
    (found,) = trainer.validate(task, toy["ToyData"](), verbose=False)
    assert found["val/mse"] == 0
