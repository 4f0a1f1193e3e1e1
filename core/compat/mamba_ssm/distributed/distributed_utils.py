"""What mamba-ssm's layers call between processes. Its layer files import these names whether a
layer is split or not; here there is one process, and a group of processes is refused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from longseq.core.compat._names import module_getattr
from longseq.core.errors import ConfigError

__all__ = [
    "all_gather",
    "all_gather_raw",
    "all_reduce",
    "all_reduce_raw",
    "allreduce_sequence_parallel_grad",
    "get_dim_for_local_rank",
    "reduce_scatter",
    "reduce_scatter_raw",
    "sync_shared_params",
]
__getattr__ = module_getattr(__name__)


def one_process(name: str, process_group: Any) -> None:
    """Checks that nothing is to be split.

    Raises:
        ConfigError: if there is a group of processes.
    """
    if process_group is not None:
        raise ConfigError(
            f"{name}: process_group, a layer split over processes, is not offered; give None"
        )


def all_gather(x: Tensor, process_group: Any = None) -> Tensor:
    """Returns x, which one process holds whole; refuses a group."""
    one_process("all_gather", process_group)
    return x


def reduce_scatter(x: Tensor, process_group: Any = None) -> Tensor:
    """Returns x, the sum over one process; refuses a group."""
    one_process("reduce_scatter", process_group)
    return x


def all_reduce(x: Tensor, process_group: Any = None) -> Tensor:
    """Returns x, the sum over one process; refuses a group."""
    one_process("all_reduce", process_group)
    return x


def all_gather_raw(x: Tensor, process_group: Any, async_op: bool = False) -> tuple[Tensor, None]:
    """Returns x and no handle to wait for; refuses a group."""
    return all_gather(x, process_group), None


def reduce_scatter_raw(
    x: Tensor, process_group: Any, async_op: bool = False
) -> tuple[Tensor, None]:
    """Returns x and no handle to wait for; refuses a group."""
    return reduce_scatter(x, process_group), None


def all_reduce_raw(x: Tensor, process_group: Any, async_op: bool = False) -> tuple[Tensor, None]:
    """Returns x and no handle to wait for; refuses a group."""
    return all_reduce(x, process_group), None


def sync_shared_params(model: nn.Module, process_group: Any) -> None:
    """Does nothing: one process holds every parameter; refuses a group."""
    one_process("sync_shared_params", process_group)


def allreduce_sequence_parallel_grad(model: nn.Module, process_group: Any) -> None:
    """Does nothing: one process holds every gradient; refuses a group."""
    one_process("allreduce_sequence_parallel_grad", process_group)


def get_dim_for_local_rank(dim: int, world_size: int, local_rank: int, multiple_of: int = 1) -> int:
    """Returns how much of a width one process holds.

    Args:
        dim: the width.
        world_size: processes.
        local_rank: this one's number.
        multiple_of: each process holds a multiple of this; the first ones one more than the last
            where it does not come out even.
    """
    whole, rest = divmod(dim // multiple_of, world_size)
    return (whole + int(local_rank < rest)) * multiple_of
