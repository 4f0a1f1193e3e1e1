"""Blocks that keep only their input for the backward pass, and compute the rest again: activation
checkpointing (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from longseq.vision.fine_tuning import BLOCK
from longseq.vision.models.layers import ImageModel


def block_names(model: ImageModel) -> list[str]:
    """Returns the names of the modules that are blocks, none inside another, in order.

    Args:
        model: any image model.
    """
    found: dict[str, None] = {}
    for name, _ in model.named_parameters():
        places = list(BLOCK.finditer(name))
        if places:
            found[name[: places[-1].end()].removesuffix(".")] = None
    outer = {one for one in found for other in found if other.startswith(f"{one}.")}
    return [name for name in found if name not in outer]


def recompute_blocks(model: ImageModel) -> None:
    """Lets every block keep only its input in training; outputs and gradients stay the same.

    Memory falls to about that of one block and the maps between them, for one more forward pass per
    step. Batch norms count a batch once, and what is drawn at random is drawn again alike.

    Args:
        model: changed; its parameters' names are not.
    """
    for name in block_names(model):
        block = model.get_submodule(name)
        # A partial of module-level functions, so that models can be copied and pickled.
        block.forward = functools.partial(_run, block, type(block).forward)


def _run(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(block, *args, **kwargs)
    contexts = functools.partial(_contexts, block)
    return checkpoint(forward, block, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass, and of the second."""
    return nullcontext(), _without_moments(block)


@contextmanager
def _without_moments(block: nn.Module) -> Iterator[None]:
    """Batch norms take a batch's moments, as before, but do not average them in again."""
    norms = [one for one in block.modules() if isinstance(one, _BatchNorm) and one.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count
