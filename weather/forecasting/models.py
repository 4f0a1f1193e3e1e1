"""Forecasting networks on doubly periodic fields: ConvS5, ConvLSTM, a Fourier neural operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_choice, check_positive
from longseq.core.mixers import State
from longseq.weather.video.conv_lstm import ConvLSTMBlock
from longseq.weather.video.conv_s5 import ConvS5Block

Kind = Literal["conv_s5", "conv_lstm", "fno"]


def wrap(x: Tensor, reach: int) -> Tensor:
    """Returns fields (…, C, H, W) with their other side's points around them."""
    shape = x.shape
    flat = F.pad(x.reshape(-1, *shape[-3:]), (reach,) * 4, mode="circular")
    return flat.view(*shape[:-2], shape[-2] + 2 * reach, shape[-1] + 2 * reach)


class FourierLayer(nn.Module):
    """x + W₂ gelu(F⁻¹ R F x + W₁ ∗ x), a layer of a Fourier neural operator (arXiv 2010.08895) with
    a 3 × 3 convolution beside it."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        shape = (2, channels, channels, modes, modes, 2)
        self.weight = nn.Parameter(torch.randn(shape) / channels)
        self.local = nn.Conv2d(channels, channels, 3)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Maps (B, L, C, H, W), every frame alone."""
        flat = x.flatten(0, 1)
        rows, columns, m = flat.shape[-2], flat.shape[-1], self.modes
        spectrum = torch.fft.rfft2(flat, norm="ortho")
        weight = torch.view_as_complex(self.weight)
        made = torch.zeros_like(spectrum)
        # Wavenumbers along the rows from zero up, and below zero, as far as the field has them.
        up, down, k = min(m, (rows + 1) // 2), min(m, rows // 2), min(m, columns // 2 + 1)
        for part, count, low in ((0, up, slice(0, up)), (1, down, slice(rows - down, rows))):
            chosen = weight[part, :, :, :count] if part == 0 else weight[part, :, :, m - count :]
            made[..., low, :k] = torch.einsum(
                "bihw,iohw->bohw", spectrum[..., low, :k], chosen[..., :k]
            )
        y = torch.fft.irfft2(made, s=(rows, columns), norm="ortho")
        y = flat + self.out(F.gelu(y + self.local(wrap(flat, 1))))
        return y.unflatten(0, x.shape[:2]), {}


class FlowModel(nn.Module):
    """Frames (B, L, C, H, W) to the frames that follow each: frame + head(layers(stem)).

    Args:
        channels: C.
        kind: "conv_s5", "conv_lstm" or "fno".
        width: channels inside.
        n_layers: layers of the core.
        d_state: real state dimensions of a point (ConvS5), hidden channels (ConvLSTM).
        modes: wavenumbers along either axis (FNO).
    """

    def __init__(
        self,
        channels: int = 2,
        kind: Kind = "fno",
        width: int = 24,
        n_layers: int = 3,
        d_state: int = 24,
        modes: int = 10,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, Kind)
        for name, value in (("width", width), ("n_layers", n_layers), ("d_state", d_state)):
            check_positive(name, value)
        self.channels, self.kind = channels, kind
        self.stem = nn.Conv2d(channels, width, 3)
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            if kind == "conv_s5":
                layers.append(ConvS5Block(width, d_state, groups=4, edges="circular"))
            elif kind == "conv_lstm":
                layers.append(ConvLSTMBlock(width, d_state, groups=4, edges="circular"))
            else:
                layers.append(FourierLayer(width, modes))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Conv2d(width + channels, channels, 3)

    def forward(
        self, frames: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Predicts the next frame of every frame.

        Args:
            frames: (B, L, C, H, W), or the next ones of a sequence.
            states: after the frames before; None at the start.

        Returns:
            Predictions of the same shape, and the states.
        """
        batch, carried = frames.shape[:2], []
        x = F.gelu(self.stem(wrap(frames, 1).flatten(0, 1))).unflatten(0, batch)
        for i, layer in enumerate(self.layers):
            x, state = layer(x, None if states is None else states[i])
            carried.append(state)
        made = self.head(wrap(torch.cat([x, frames], 2), 1).flatten(0, 1)).unflatten(0, batch)
        return frames + made, carried

    def rollout(self, context: Tensor, count: int) -> Iterator[Tensor]:
        """Yields the frames after a context (B, L, C, H, W) one by one, each fed back."""
        predicted, states = self(context)
        frame = predicted[:, -1:]
        for index in range(count):
            if index:
                frame, states = self(frame, states)
            yield frame[:, 0]
