"""Metrics of a training in low precision: their own arithmetic is not lowered."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from longseq.core.training.hyper import BaseData
from longseq.core.training.task import BaseTask


class Products(MeanSquaredError):
    """A metric by a product of matrices, which autocast lowers."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(target @ torch.eye(target.shape[-1]), target)


class MeasuredByProducts(BaseTask):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 3)

    def make_metrics(self) -> dict[str, Any]:
        return {"error": Products()}

    def compute(self, batch: Tensor) -> dict[str, Any]:
        found = self.line(batch).float()
        return {"loss": found.square().mean(), "preds": found, "target": batch}


def test_metrics_are_not_computed_in_the_precision_of_the_training() -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", precision="bf16-mixed", **quiet)
    batches = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(batches, batch_size=None)
    (found,) = trainer.validate(MeasuredByProducts(), loader, verbose=False)
    assert found["val/error"] == 0


class Collects(MeasuredByProducts):
    """Keeps what it has seen, as tasks that calibrate do."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Tensor] = []


def test_data_that_are_looked_at_stay_apart_from_what_a_task_keeps() -> None:
    task, data = Collects(), BaseData()
    task.look_at(data)
    assert task.data is data
    assert task._seen == []
