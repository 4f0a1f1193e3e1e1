"""ConvS5 between gates: products of features as in a ConvLSTM, with a linear scan over time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.checks import check_even, check_positive
from longseq.core.errors import ArgumentError
from longseq.core.mixers import State
from longseq.weather.video.conv_s5 import ConvS5, Init, ResidualBlock
from longseq.weather.video.periodic import Edges, conv2d


class GatedConvS5(nn.Module):
    """A ConvS5 whose inputs and outputs pass gates: (B, L, U, H, W) to the same.

        i, o, g = W ∗ u_t + b,   y_t = V [σ(o) ⊙ ConvS5(σ(i) ⊙ g)_t].

    A ConvLSTM's gates without the way from its state back to them: they see the frame alone, so all
    frames go through every convolution at once and time stays a linear scan. There are d_state / 2
    channels between the gates, one per conjugate pair of the states, which are those of the
    ``ConvS5`` inside.

    Args:
        channels: U.
        d_state: see ``ConvS5``.
        kernel: side of W's and the ConvS5's kernels; odd.
        init: see ``ConvS5``.
        dt_min: see ``ConvS5``.
        dt_max: see ``ConvS5``.
        edges: see ``ConvS5``.
        read_kernel: see ``ConvS5``.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 64,
        kernel: int = 3,
        init: Init = "legs",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        edges: Edges = "zeros",
        read_kernel: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = check_positive("channels", channels)
        self.hidden = check_even("d_state", d_state)
        self.core = ConvS5(
            self.hidden,
            d_state,
            kernel,
            init=init,
            dt_min=dt_min,
            dt_max=dt_max,
            edges=edges,
            read_kernel=read_kernel,
        )
        self.input = conv2d(channels, 3 * self.hidden, kernel, edges)
        self.out = nn.Conv2d(self.hidden, channels, 1)

    def _enter(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what enters the ConvS5 and the gate of what leaves it, for (N, U, H, W)."""
        made = self.input(u.contiguous(memory_format=torch.channels_last))
        gates, g = made.split([2 * self.hidden, self.hidden], 1)
        i, o = torch.sigmoid(gates).chunk(2, 1)
        return i * g, o

    def forward(self, u: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As ``ConvS5.forward``."""
        if u.dim() != 5 or u.shape[2] != self.channels or not u.shape[1]:
            raise ArgumentError(
                f"GatedConvS5: frames must be (batch, length ≥ 1, {self.channels}, height, width), "
                f"got {tuple(u.shape)}"
            )
        batch = u.shape[:2]
        entered, gate = self._enter(u.flatten(0, 1))
        y, state = self.core(entered.unflatten(0, batch), state)
        return self.out(gate * y.flatten(0, 1)).unflatten(0, batch), state

    def step(self, u_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Runs one frame (B, U, H, W)."""
        entered, gate = self._enter(u_t)
        y, state = self.core.step(entered, state)
        return self.out(gate * y), state

    def init_state(self, batch: int, height: int, width: int) -> State:
        """Returns the state at the start of a sequence, see ``ConvS5``."""
        return self.core.init_state(batch, height, width)


class GatedConvS5Block(ResidualBlock):
    """``ResidualBlock`` around a GatedConvS5.

    Args:
        channels: U.
        d_state: see ``ConvS5``.
        kernel: likewise.
        init: likewise.
        groups: of the group norms; must divide the channels.
        dropout: after the residual branch.
        edges: see ``ConvS5``.
        dt_min: likewise.
        dt_max: likewise.
        read_kernel: likewise.
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 64,
        kernel: int = 3,
        init: Init = "legs",
        groups: int = 32,
        dropout: float = 0.0,
        edges: Edges = "zeros",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        read_kernel: int | None = None,
    ) -> None:
        core = GatedConvS5(channels, d_state, kernel, init, dt_min, dt_max, edges, read_kernel)
        super().__init__("ssm", core, channels, groups, dropout, edges)
