"""The base of every domain's task: shared step, logging, optimiser, hyper-parameters and random stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW
from torchmetrics import Metric, MetricCollection

from longseq.core.checkpoints import foreign
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.errors import ConfigError
from longseq.core.training.hyper import record_hyper_parameters
from longseq.core.training.optim import parameter_groups, warmup_cosine_scheduler
from longseq.core.training.rng import RngStream


class BaseTask(LightningModule):
    """A model in training: subclasses build it in ``__init__`` and define ``compute``.

    A step is: ``compute``, log the loss, update metrics (validation, test). Arguments must be JSON-able.

    Args:
        lr: peak learning rate.
        ssm_lr: peak learning rate of state-space parameters; None for the same as ``lr``.
        weight_decay: of matrices; norms, biases, embeddings and state-space parameters are never decayed.
        betas: AdamW's two decay rates.
        warmup_steps: optimiser steps of linear warm-up.
        total_steps: optimiser steps until the end of the cosine; None for the trainer's number.
        min_lr_ratio: final over peak learning rate.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        ssm_lr: float | None = None,
        weight_decay: float = 0.1,
        betas: Sequence[float] = (0.9, 0.95),
        warmup_steps: int = 0,
        total_steps: int | None = None,
        min_lr_ratio: float = 0.1,
    ) -> None:
        super().__init__()
        self.lr, self.ssm_lr, self.weight_decay, self.betas = lr, ssm_lr, weight_decay, tuple(betas)
        self.warmup_steps, self.total_steps, self.min_lr_ratio = warmup_steps, total_steps, min_lr_ratio
        record_hyper_parameters(self)
        self._stream = RngStream()
        made = MetricCollection(dict(self.make_metrics()))
        self.metrics = nn.ModuleDict({stage: made.clone(prefix=f"{stage}/") for stage in ("val", "test")})

    @abstractmethod
    def compute(self, batch: Any) -> dict[str, Any]:
        """Returns ``loss``, ``count`` (int) if it is a mean over so many, and the metrics' arguments."""

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the metrics of validation and test by name; called while ``__init__`` of the base runs."""
        return {}

    def _shared_step(self, batch: Any, stage: str) -> Tensor:
        out = self.compute(batch)
        loss, count = out.pop("loss"), int(out.pop("count", 1))
        self.log(f"{stage}/loss", loss, batch_size=count, prog_bar=True, sync_dist=stage != "train")
        if stage != "train" and len(self.metrics[stage]):  # type: ignore[arg-type]
            self.metrics[stage].update(**out)  # type: ignore[operator]
            self.log_dict(self.metrics[stage], batch_size=count)  # type: ignore[arg-type]
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "test")

    def configure_optimizers(self) -> Any:
        if (total := float(self.total_steps or self.trainer.estimated_stepping_batches)) == float("inf"):
            raise ConfigError("the length of the run is unknown: set model.total_steps or trainer.max_steps")
        groups = parameter_groups(self, self.lr, self.weight_decay, self.ssm_lr)
        adam = AdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]))
        rate = warmup_cosine_scheduler(adam, self.warmup_steps, int(total), self.min_lr_ratio)
        return {"optimizer": adam, "lr_scheduler": rate}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._stream.enter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stream.leave()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng_states"] = self._stream.state_dict()
        checkpoint[foreign.KEY] = foreign.record(self, self.hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_state_dict(self, checkpoint["state_dict"])
        self._stream.load_state_dict(checkpoint.get("rng_states", []))
