"""A next-frame video model: encoder, ConvS5 or ConvLSTM blocks, decoder; rolls out in constant
memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import State
from longseq.weather.video.conv_lstm import ConvLSTMBlock
from longseq.weather.video.conv_s5 import ConvS5Block, Init
from longseq.weather.video.gated_conv_s5 import GatedConvS5Block

Core = Literal["conv_s5", "gated_conv_s5", "conv_lstm"]


class NextFrame(nn.Module):
    """Frames (B, L, C, H, W) in [0, 1] to the frames that follow each.

    Frames are cut into patches (pixels become channels); the encoder halves the resolution once for
    every entry of ``depths`` after the first; the decoder doubles it again and sees the encoder's
    maps of the same frame. Both work frame by frame: only the core carries time.

    Args:
        channels: C.
        patch: side of the patches in pixels.
        depths: channels of the encoder at every resolution, from the finest.
        n_layers: blocks at the coarsest.
        d_state: real state dimensions of a pixel there; the ConvLSTM's hidden channels.
        kernel: side of the core's kernels.
        init: see ``ConvS5``.
        groups: of the group norms.
        dropout: in the blocks.
        core: "conv_s5", "gated_conv_s5" or "conv_lstm".
        dt_min: shortest time step of the ConvS5's states at the start; see ``ConvS5``.
        dt_max: longest one.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: int = 2,
        depths: tuple[int, ...] | list[int] = (24,),
        n_layers: int = 2,
        d_state: int = 32,
        kernel: int = 3,
        init: Init = "legs",
        groups: int = 8,
        dropout: float = 0.0,
        core: Core = "conv_s5",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("core", core, Core)
        check_positive("n_layers", n_layers)
        if not depths:
            raise ConfigError("depths needs at least one number of channels")
        widths = [check_positive("depths", depth) for depth in depths]
        self.channels, self.patch = (
            check_positive("channels", channels),
            check_positive("patch", patch),
        )
        self.factor = patch * 2 ** (len(widths) - 1)
        cells = channels * patch * patch
        self.stem = nn.Conv2d(cells, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.blocks = nn.ModuleList()
        for _ in range(n_layers):
            if core == "conv_lstm":
                self.blocks.append(ConvLSTMBlock(widths[-1], d_state, kernel, groups, dropout))
                continue
            block = ConvS5Block if core == "conv_s5" else GatedConvS5Block
            times = {"dt_min": dt_min, "dt_max": dt_max}
            self.blocks.append(block(widths[-1], d_state, kernel, init, groups, dropout, **times))
        self.up = nn.ModuleList(
            nn.Conv2d(coarse + fine, fine, 3, padding=1)
            for coarse, fine in zip(reversed(widths[1:]), reversed(widths[:-1]))
        )
        self.head = nn.Conv2d(widths[0] + cells, cells, 3, padding=1)

    def _encode(self, frames: Tensor) -> list[Tensor]:
        cells = F.pixel_unshuffle(frames, self.patch).contiguous(memory_format=torch.channels_last)
        maps = [F.gelu(self.stem(cells))]
        for conv in self.down:
            maps.append(F.gelu(conv(maps[-1])))
        return maps

    def _decode(self, z: Tensor, maps: list[Tensor], frames: Tensor) -> Tensor:
        for conv, fine in zip(self.up, reversed(maps[:-1])):
            z = F.gelu(
                conv(torch.cat([F.interpolate(z, scale_factor=2.0, mode="nearest"), fine], 1))
            )
        cells = self.head(torch.cat([z, F.pixel_unshuffle(frames, self.patch)], 1))
        return torch.sigmoid(F.pixel_shuffle(cells, self.patch))

    def _check(self, frames: Tensor, dims: int) -> None:
        if frames.dim() != dims or frames.shape[-3] != self.channels:
            raise ArgumentError(
                f"NextFrame: frames of {self.channels} channels needed, got {tuple(frames.shape)}"
            )
        if frames.shape[-1] % self.factor or frames.shape[-2] % self.factor:
            raise ArgumentError(
                f"NextFrame: sides must be multiples of {self.factor}, got {tuple(frames.shape)}"
            )

    def forward(
        self, frames: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Predicts the next frame of every frame, all at once.

        Args:
            frames: (B, L, C, H, W), or the next chunk of a video.
            states: after the chunk before; None at the start.

        Returns:
            Predictions of frames 1 … L (counted from 0), and the states.
        """
        self._check(frames, 5)
        batch = frames.shape[:2]
        flat = frames.flatten(0, 1)
        maps = self._encode(flat)
        z, carried = maps[-1].unflatten(0, batch), []
        for i, block in enumerate(self.blocks):
            z, state = block(z, None if states is None else states[i])
            carried.append(state)
        return self._decode(z.flatten(0, 1), maps, flat).unflatten(0, batch), carried

    def step(self, frame: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Predicts the next frame of one frame (B, C, H, W)."""
        self._check(frame, 4)
        maps = self._encode(frame)
        z, carried = maps[-1], []
        for block, state in zip(self.blocks, states):
            z, state = block.step(z, state)  # type: ignore[operator]
            carried.append(state)
        return self._decode(z, maps, frame), carried

    def rollout(
        self, context: Tensor, count: int, states: list[State] | None = None
    ) -> Iterator[Tensor]:
        """Yields the frames after a context one by one, each fed back; holds one frame and one
        state.

        Args:
            context: (B, L, C, H, W).
            count: number of frames.
            states: of what came before the context; None for nothing.
        """
        if count < 1:
            return
        predicted, states = self(context, states)
        frame = predicted[:, -1].clone()
        del predicted
        yield frame
        for _ in range(count - 1):
            frame, states = self.step(frame, states)
            yield frame
