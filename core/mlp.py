"""Position-wise networks of the residual backbone: plain, and gated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.ops.linear_maps import mapped

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "silu": silu,
}


class MLP(nn.Module):
    """Two linear maps with a GELU between: (B, L, D) to (B, L, D).

    Args:
        d_model: width D.
        d_hidden: hidden width.
    """

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, d_hidden)
        self.fc2 = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Maps every position on its own."""
        return mapped(self.fc2, gelu(mapped(self.fc1, x), approximate="tanh"))


class GatedMLP(nn.Module):
    """W2 (act(s a) · b) with [a, b] = W1 x (arXiv 2002.05202); (B, L, D) to (B, L, D).

    Args:
        d_model: width D.
        d_hidden: hidden width ...
        multiple_of: ... rounded up to a multiple of this; 64 is that of xLSTM's blocks.
        activation: "gelu", "gelu_tanh" or "silu".
        bias: whether the maps have biases.
        gate_scale: constant factor s before the activation.
        out_scale: constant factor of the output.

    Raises:
        ConfigError: for an unknown activation.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        multiple_of: int = 64,
        activation: str = "gelu",
        bias: bool = False,
        gate_scale: float = 1.0,
        out_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"no activation named {activation!r}; {did_you_mean(activation, ACTIVATIONS)}"
            )
        self.activation, self.gate_scale, self.out_scale = activation, gate_scale, out_scale
        d_hidden = math.ceil(d_hidden / multiple_of) * multiple_of
        self.fc1 = nn.Linear(d_model, 2 * d_hidden, bias=bias)
        self.fc2 = nn.Linear(d_hidden, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps every position on its own."""
        gate, value = mapped(self.fc1, x).chunk(2, -1)
        gate = gate if self.gate_scale == 1 else gate * self.gate_scale
        y = mapped(self.fc2, ACTIVATIONS[self.activation](gate) * value)
        return y if self.out_scale == 1 else y * self.out_scale


MLPS: dict[str, Any] = {
    "gelu": MLP,
    "geglu": GatedMLP,
    "geglu_tanh": partial(GatedMLP, activation="gelu_tanh"),
    "swiglu": partial(GatedMLP, activation="silu"),
}
