"""Forecasting networks on doubly periodic fields: ConvS5, ConvLSTM, a Fourier neural operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ArgumentError
from longseq.core.mixers import State
from longseq.weather.video.conv_lstm import ConvLSTMBlock
from longseq.weather.video.conv_s5 import ConvS5Block, held_systems
from longseq.weather.video.gated_conv_s5 import GatedConvS5Block
from longseq.weather.video.periodic import PeriodicConv2d

Kind = Literal["conv_s5", "gated_conv_s5", "conv_lstm", "fno"]


class FourierLayer(nn.Module):
    """x + W₂ gelu(F⁻¹ R F x + W₁ ∗ x), a layer of a Fourier neural operator (arXiv 2010.08895) with
    a 3 × 3 convolution beside it."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        shape = (2, channels, channels, modes, modes, 2)
        self.weight = nn.Parameter(torch.randn(shape) / channels)
        self.local = PeriodicConv2d(channels, channels, 3)
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
        y = flat + self.out(F.gelu(y + self.local(flat)))
        return y.unflatten(0, x.shape[:2]), {}


class FlowModel(nn.Module):
    """Frames (B, L, C, H, W) to the frames that follow each: frame + head(layers(stem)).

    Args:
        channels: C.
        kind: "conv_s5", "gated_conv_s5", "conv_lstm" or "fno".
        width: channels inside.
        n_layers: layers of the core.
        d_state: real state dimensions of a point (ConvS5), hidden channels (ConvLSTM).
        modes: wavenumbers along either axis (FNO).
        dt_min: shortest time step of ConvS5's states at the start, see ``ConvS5``.
        dt_max: longest one.
        patch: side of the patches of points that become channels inside; divides H and W.
        read_kernel: side of the kernels that read ConvS5's states, see ``ConvS5``.
    """

    def __init__(
        self,
        channels: int = 2,
        kind: Kind = "fno",
        width: int = 24,
        n_layers: int = 3,
        d_state: int = 24,
        modes: int = 10,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        patch: int = 1,
        read_kernel: int = 3,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, Kind)
        for name, value in (("width", width), ("n_layers", n_layers), ("d_state", d_state)):
            check_positive(name, value)
        self.channels, self.kind, self.patch = channels, kind, check_positive("patch", patch)
        inside = channels * patch**2
        self.stem = PeriodicConv2d(inside, width, 3)
        layers: list[nn.Module] = []
        for _ in range(n_layers):
            if kind in ("conv_s5", "gated_conv_s5"):
                block = ConvS5Block if kind == "conv_s5" else GatedConvS5Block
                own: dict[str, Any] = {"dt_min": dt_min, "dt_max": dt_max}
                own |= {"groups": 4, "edges": "circular", "read_kernel": read_kernel}
                layers.append(block(width, d_state, **own))
            elif kind == "conv_lstm":
                layers.append(ConvLSTMBlock(width, d_state, groups=4, edges="circular"))
            else:
                layers.append(FourierLayer(width, modes))
        self.layers = nn.ModuleList(layers)
        self.head = PeriodicConv2d(width + inside, inside, 3)

    def forward(
        self, frames: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Predicts the next frame of every frame.

        Args:
            frames: (B, L, C, H, W), or the next ones of a sequence.
            states: after the frames before; None at the start.

        Returns:
            Predictions of the same shape, and the states.

        Raises:
            ArgumentError: if the patches do not divide the fields.
        """
        if frames.shape[-2] % self.patch or frames.shape[-1] % self.patch:
            raise ArgumentError(
                f"FlowModel: fields of {frames.shape[-2]} × {frames.shape[-1]} points cannot be "
                f"cut into patches of {self.patch} × {self.patch}"
            )
        batch, carried = frames.shape[:2], []
        flat = F.pixel_unshuffle(frames.flatten(0, 1), self.patch)
        if self.kind != "fno":  # Fourier transforms want whole fields side by side
            flat = flat.contiguous(memory_format=torch.channels_last)
        x = F.gelu(self.stem(flat)).unflatten(0, batch)
        for i, layer in enumerate(self.layers):
            x, state = layer(x, None if states is None else states[i])
            carried.append(state)
        made = self.head(torch.cat([x.flatten(0, 1), flat], 1))
        made = F.pixel_shuffle(made, self.patch)
        return frames + made.unflatten(0, batch), carried

    def rollout(self, context: Tensor, count: int, window: int = 0) -> Iterator[Tensor]:
        """Yields the frames after a context (B, L, C, H, W) one by one, each fed back.

        Args:
            context: (B, L, C, H, W).
            count: number of frames.
            window: every frame is made from the last ones up to this number, from the state at a
                start, as in training on windows of that length; 0 to carry the state on.
        """
        if window:
            frames = context
            for _ in range(count):
                frames = frames[:, -window:]
                frames = torch.cat([frames, self(frames)[0][:, -1:]], 1)
                yield frames[:, -1]
            return
        predicted, states = self(context)
        frame = predicted[:, -1:]
        for index in range(count):
            if index:
                frame, states = self(frame, states)
            yield frame[:, 0]

    def both(self, frames: Tensor, context: int) -> tuple[Tensor, Tensor]:
        """Forecasts training frames from the true ones and from its own, the context once for both.

        Args:
            frames: (B, L, C, H, W).
            context: frames that are given, below L.

        Returns:
            Frames 2 to L, each from the true ones before it, and those after the context from the
            context and the model's own: (B, L - 1, C, H, W) and (B, L - context, C, H, W).
        """
        with held_systems(self):
            first, states = self(frames[:, :context])
            true, own = [first], [first[:, -1:]]
            if frames.shape[1] > context + 1:
                true.append(self(frames[:, context:-1], states)[0])
            for _ in range(frames.shape[1] - context - 1):
                frame, states = self(own[-1], states)
                own.append(frame)
        return torch.cat(true, 1), torch.cat(own, 1)
