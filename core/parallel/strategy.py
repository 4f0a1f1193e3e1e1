"""Context parallelism as a strategy of Lightning's trainer: ``--trainer.context_parallel_size``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from longseq.core.errors import ConfigError
from longseq.core.parallel.context import ContextParallel

OPTION = "context_parallel_size"


class ContextParallelStrategy(DDPStrategy):
    """All processes train on the same batch, each on its part of the positions.

    Batches, steps and checkpoints are those of one process. Validation and test read every region
    on every process.
    """

    @cached_property
    def context(self) -> ContextParallel:
        """The processes of one sequence: all."""
        return ContextParallel()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """One replica: no process has samples of its own."""
        return {"num_replicas": 1, "rank": 0}

    def configure_ddp(self) -> None:
        """Gives every process the weights of the first, in place of a wrapper that would average
        gradients."""
        assert self.model is not None
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            dist.broadcast(tensor.detach(), 0)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Adds the gradients of all parts up before the step, clipping and checks."""
        whole = model or self.lightning_module
        assert whole is not None

        def added() -> Any:
            loss = closure()
            self.context.reduce_gradients(whole)
            return loss

        return super().optimizer_step(optimizer, added, model, **kwargs)

    def part(self, batch: Any, positions: tuple[str, ...], task: str) -> Any:
        """Returns this process's part of a batch.

        Args:
            batch: of a training step, the same on all processes.
            positions: entries with positions in their second dimension.
            task: name, for the message.

        Raises:
            ConfigError: if the task does not say where its positions are, or an entry of the batch
                is of another kind.
        """
        if not positions or not isinstance(batch, Mapping):
            raise ConfigError(f"{OPTION}: {task} does not divide a sequence over processes")
        if other := sorted(set(batch) - set(positions)):
            raise ConfigError(f"{OPTION}: {task} does not divide {', '.join(other)}")
        return {name: self.context.split(batch[name]) for name in positions if name in batch}

    def mean(self, loss: Tensor, count: int) -> Tensor:
        """Returns the mean over all positions, of the means over the parts.

        Args:
            loss: of this process's part.
            count: positions that it is a mean over.
        """
        return self.context.mean(loss * count, count)


def take_option(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of Lightning's trainer: with the strategy in place of our own option.

    Args:
        asked: arguments of the trainer, ``context_parallel_size`` among them or not.

    Raises:
        ConfigError: if the number of processes is another one.
    """
    rest = dict(asked)
    size = rest.pop(OPTION, 1) or 1
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"{OPTION} must be a number of processes, got {size!r}")
    if size == 1:
        return rest
    devices, nodes = rest.get("devices", "auto"), int(rest.get("num_nodes") or 1)
    if devices == "auto" and size % nodes == 0:
        devices = rest["devices"] = size // nodes
    if isinstance(devices, str) and devices.isdecimal():
        devices = int(devices)
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count * nodes != size:
        raise ConfigError(
            f"{OPTION} {size}: one sequence is divided over all processes; here they are "
            f"{devices} devices × {nodes} nodes"
        )
    if rest.get("strategy") not in (None, "auto", "ddp"):
        raise ConfigError(f"{OPTION} {size} is a strategy of its own, beside {rest['strategy']!r}")
    rest["strategy"] = ContextParallelStrategy()
    return rest
