"""States that a layer keeps in ``InferenceParams`` while generating."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from longseq.core.errors import ArgumentError


def states_of(layer: Any, inference_params: Any, batch: int, reset: bool = False) -> Any:
    """Returns a layer's states, made on first use.

    Args:
        layer: with ``layer_idx`` and ``allocate_inference_cache``.
        inference_params: whose ``key_value_memory_dict`` holds them.
        batch: rows.
        reset: whether they are set to zero.

    Raises:
        ArgumentError: if the layer has no number, or the states have another batch.
    """
    if layer.layer_idx is None:
        raise ArgumentError(
            f"{type(layer).__name__}: generation needs layer_idx in the constructor"
        )
    held = inference_params.key_value_memory_dict
    if layer.layer_idx not in held:
        held[layer.layer_idx] = layer.allocate_inference_cache(batch, inference_params.max_seqlen)
    states = held[layer.layer_idx]
    first = states[0]
    if isinstance(first, Tensor) and first.shape[0] < batch:
        raise ArgumentError(
            f"{type(layer).__name__}: the states of layer {layer.layer_idx} are of "
            f"{first.shape[0]} rows and the input has {batch}"
        )
    if reset:
        for one in states:
            one.zero_()
    return states


def keep_last(state: Tensor, x: Tensor) -> None:
    """Writes the last inputs x (B, L, D) into a convolution's state (B, D, W), zeros first."""
    with torch.no_grad():
        state.copy_(pad(x.transpose(1, 2), (state.shape[-1] - x.shape[1], 0)))
