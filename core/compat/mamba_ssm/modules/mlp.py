"""The gated MLP of mamba-ssm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.modules._checks import check_input, check_sizes, explained

__all__ = ["GatedMLP"]
__getattr__ = module_getattr(__name__)


class GatedMLP(nn.Module):
    """W₂ (v · act(g)) with v, g = W₁ x.

    Args:
        in_features: width of the input.
        hidden_features: width inside, ⅔ · 4 of the input's if None; rounded up.
        out_features: width of the output; the input's if None.
        activation: of the gate.
        bias: whether the projections have one.
        multiple_of: what the width inside is rounded up to a multiple of.
        device: of the weights.
        dtype: of the weights.

    Raises:
        ConfigError: for sizes below 1.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = F.silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("GatedMLP", in_features=in_features, multiple_of=multiple_of)
        self.in_features = in_features
        hidden = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden += -hidden % multiple_of
        out = in_features if out_features is None else out_features
        self.fc1 = nn.Linear(in_features, 2 * hidden, bias, device, dtype)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, out, bias, device, dtype)

    @explained("fc1")
    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features); refuses another input by name."""
        check_input("GatedMLP", x, self.in_features, None)
        value, gate = self.fc1(x).chunk(2, -1)
        out: Tensor = self.fc2(value * self.activation(gate))
        return out
