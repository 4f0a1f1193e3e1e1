"""ConvLSTM: a convolutional LSTM over sequences of 2-D fields, the recurrent peer of ConvS5."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import State
from longseq.weather.video.conv_s5 import ResidualBlock
from longseq.weather.video.periodic import Edges, conv2d


class ConvLSTM(nn.Module):
    """A convolutional LSTM (arXiv 1506.04214, without peepholes): (B, L, U, H, W) to the same.

        i, f, o, g = W ∗ u_t + R ∗ h_{t-1} + b
        c_t = σ(f) c_{t-1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t),   y_t = V h_t.

    The inputs of all frames go through W at once; R takes one frame after the other. Gates of
    forgetting start with a bias of 1. The state is "h" and "c": (B, hidden, H, W).

    Args:
        channels: U.
        hidden: channels of the state.
        kernel: side of the kernels of W and R; odd.
        edges: what lies beyond a frame, see ``ConvS5``.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    def __init__(self, channels: int, hidden: int, kernel: int = 3, edges: Edges = "zeros") -> None:
        super().__init__()
        check_choice("edges", edges, Edges)
        self.channels, self.hidden = check_positive("channels", channels), hidden
        check_positive("hidden", hidden)
        if check_positive("kernel", kernel) % 2 == 0:
            raise ConfigError(f"kernel must be odd, got {kernel}")
        self.input = conv2d(channels, 4 * hidden, kernel, edges)
        self.recurrent = conv2d(hidden, 4 * hidden, kernel, edges, bias=False)
        self.out = nn.Conv2d(hidden, channels, 1)
        with torch.no_grad():
            assert self.input.bias is not None
            self.input.bias[hidden : 2 * hidden] = 1.0

    def _advance(self, entered: Tensor, state: State) -> State:
        gates = entered + self.recurrent(state["h"])
        i, f, o = torch.sigmoid(gates[:, : 3 * self.hidden]).chunk(3, 1)
        c = f * state["c"] + i * torch.tanh(gates[:, 3 * self.hidden :])
        return {"h": o * torch.tanh(c), "c": c}

    def forward(self, u: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs a whole sequence of frames, or the next chunk of one.

        Args:
            u: frames (B, L, U, H, W).
            state: after the chunk before; None at the start.

        Returns:
            Frames of the same shape, and the state after the last one.

        Raises:
            ArgumentError: for another shape.
        """
        if u.dim() != 5 or u.shape[2] != self.channels or not u.shape[1]:
            raise ArgumentError(
                f"ConvLSTM: frames must be (batch, length ≥ 1, {self.channels}, height, width), "
                f"got {tuple(u.shape)}"
            )
        batch = u.shape[:2]
        flat = u.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        if state is None:
            state = self.init_state(batch[0], *u.shape[-2:])
        hidden = []
        for entered in self.input(flat).unflatten(0, batch).unbind(1):
            state = self._advance(entered, state)
            hidden.append(state["h"].permute(0, 2, 3, 1))
        # Channels last, as the convolutions take them.
        stacked = torch.stack(hidden, 1).flatten(0, 1).permute(0, 3, 1, 2)
        return self.out(stacked).unflatten(0, batch), state

    def step(self, u_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Runs one frame (B, U, H, W)."""
        state = self._advance(self.input(u_t), state)
        return self.out(state["h"]), state

    def init_state(self, batch: int, height: int, width: int) -> State:
        """Returns the state at the start of a sequence: zeros (B, hidden, H, W)."""
        zeros = self.out.weight.new_zeros(batch, self.hidden, height, width)
        zeros = zeros.contiguous(memory_format=torch.channels_last)
        return {"h": zeros, "c": zeros}


class ConvLSTMBlock(ResidualBlock):
    """``ResidualBlock`` around a ConvLSTM.

    Args:
        channels: U.
        hidden: see ``ConvLSTM``.
        kernel: likewise.
        groups: of the group norms; must divide the channels.
        dropout: after the residual branch.
        edges: see ``ConvS5``.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 16,
        kernel: int = 3,
        groups: int = 32,
        dropout: float = 0.0,
        edges: Edges = "zeros",
    ) -> None:
        core = ConvLSTM(channels, hidden, kernel, edges)
        super().__init__("lstm", core, channels, groups, dropout, edges)
