"""Linear maps and embeddings that mamba-ssm splits over processes, for one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.distributed.distributed_utils import one_process

__all__ = [
    "ColumnParallelEmbedding",
    "ColumnParallelLinear",
    "ParallelEmbeddings",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "parallel_linear_func",
]
__getattr__ = module_getattr(__name__)


def parallel_linear_func(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    process_group: Any = None,
    sequence_parallel: bool = True,
) -> Tensor:
    """Returns W x + b; refuses a group of processes."""
    one_process("parallel_linear_func", process_group)
    return nn.functional.linear(x, weight, bias)


class ColumnParallelLinear(nn.Linear):
    """A linear map, of which one process holds all.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        process_group: None.
        bias: whether there is one.
        sequence_parallel: accepted; it speaks of the group.
        multiple_of: accepted; it speaks of the group.
        device: of the weights.
        dtype: of the weights.

    Raises:
        ConfigError: for a group of processes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        process_group: Any = None,
        bias: bool = True,
        sequence_parallel: bool = True,
        multiple_of: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        one_process(type(self).__name__, process_group)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.process_group, self.sequence_parallel = None, sequence_parallel


class RowParallelLinear(ColumnParallelLinear):
    """A linear map, of which one process holds all; arguments as ``ColumnParallelLinear``."""


class VocabParallelEmbedding(nn.Embedding):
    """An embedding, of which one process holds all.

    Args:
        num_embeddings: entries.
        embedding_dim: width.
        *args: of ``nn.Embedding``.
        process_group: None.
        padding_idx: entry whose gradient is zero.
        **kwargs: of ``nn.Embedding``.

    Raises:
        ConfigError: for a group of processes.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *args: Any,
        process_group: Any = None,
        padding_idx: int | None = None,
        **kwargs: Any,
    ) -> None:
        one_process(type(self).__name__, process_group)
        super().__init__(num_embeddings, embedding_dim, padding_idx, *args, **kwargs)
        self.process_group = None


class ColumnParallelEmbedding(VocabParallelEmbedding):
    """An embedding, of which one process holds all; arguments as ``VocabParallelEmbedding``."""


class ParallelEmbeddings(nn.Module):
    """Embeddings of tokens and, if there are any, of positions, which are added.

    Args:
        embed_dim: width D.
        vocab_size: tokens.
        max_position_embeddings: positions; 0 or less for no embedding of them.
        process_group: None.
        padding_idx: token whose gradient is zero.
        sequence_parallel: accepted; it speaks of the group.
        device: of the weights.
        dtype: of the weights.

    Raises:
        ConfigError: for a group of processes.
    """

    def __init__(
        self,
        embed_dim: int,
        vocab_size: int,
        max_position_embeddings: int,
        process_group: Any = None,
        padding_idx: int | None = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        group: dict[str, Any] = {"process_group": process_group}
        self.word_embeddings = VocabParallelEmbedding(
            vocab_size, embed_dim, padding_idx=padding_idx, **group, **where
        )
        self.max_position_embeddings = max_position_embeddings
        if max_position_embeddings > 0:
            self.position_embeddings = ColumnParallelEmbedding(
                max_position_embeddings, embed_dim, **group, **where
            )

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        combine_batch_seqlen_dim: bool = False,
    ) -> Tensor:
        """Maps tokens (B, L) to (B, L, D), or to (B·L, D) with ``combine_batch_seqlen_dim``."""
        x: Tensor = self.word_embeddings(input_ids)
        if self.max_position_embeddings > 0:
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
            x = x + self.position_embeddings(position_ids)
        return x.flatten(0, 1) if combine_batch_seqlen_dim else x
