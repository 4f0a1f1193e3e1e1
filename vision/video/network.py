"""Frames with memory: an encoder per frame, mixers over time at every pixel of its coarse map.

    x_l = encoder(frame_l);   m = x + s(x),  y[., p] = m[., p] + mixer(m[., p])  at every pixel p,

s being a 3 × 3 convolution within the frame, so that layer after layer a pixel's memory reaches its
neighbours. The mixers are the core's; their states are all that goes from one frame to the next, as
the hidden map of a ConvGRU does in Robust Video Matting (Lin et al. 2021, arXiv 2108.11515).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import State
from longseq.vision.models.unet import Join, double_conv

States = list[list[State]]
"""Of every layer: the states of its backbone, whose batch is (clip, row, column) of the map."""


class FrameMemory(nn.Module):
    """Clips (B, L, C, H, W) to maps of features per frame, the coarsest with a memory.

    Args:
        in_chans: C.
        dims: widths of the levels; every level has half the resolution of the one before.
        n_layers: layers of memory on the coarsest map.
        mixer: name of a causal mixer of the core.
        mixer_kwargs: its hyper-parameters.
        memory: whether a state goes from frame to frame. Without it the same network begins anew
            at every frame: the baseline that sees single frames.

    Raises:
        ConfigError: for a mixer that is not causal, or no widths.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dims: Sequence[int] = (8, 16, 32),
        n_layers: int = 2,
        mixer: str = "mamba",
        mixer_kwargs: Mapping[str, Any] | None = None,
        memory: bool = True,
    ) -> None:
        super().__init__()
        if not dims:
            raise ConfigError("dims must name at least one width")
        self.in_chans, self.memory = check_positive("in_chans", in_chans), memory
        self.mixer = mixer
        self.dims, self.reduction = list(dims), 2 ** (len(dims) - 1)
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in zip((in_chans, *dims), dims))
        width = dims[-1]
        self.space = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) for _ in range(check_positive("layers", n_layers))
        )
        self.time = nn.ModuleList(Backbone(width, 1, mixer, mixer_kwargs) for _ in range(n_layers))
        if not all(isinstance(one, Backbone) and one.causal for one in self.time):
            raise ConfigError(f"mixer must be causal to go from frame to frame, {mixer!r} is not")
        self.to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor, states: States | None = None) -> tuple[list[Tensor], States]:
        """Runs a whole clip, or its next frames.

        Args:
            frames: values from 0 to 1, (B, L, C, H, W).
            states: after the frames before; None at the start.

        Returns:
            The map of every level, (B·L, D, H / 2ⁱ, W / 2ⁱ) with the last one's memory in it, and
            the states after the last frame (none without memory).

        Raises:
            ArgumentError: for another shape, or too small a frame.
        """
        if frames.dim() != 5 or frames.shape[2] != self.in_chans or not frames.shape[1]:
            raise ArgumentError(
                f"frames must be (batch, length ≥ 1, {self.in_chans}, height, width), got "
                f"{tuple(frames.shape)}"
            )
        if min(frames.shape[3:]) < self.reduction:
            raise ArgumentError(
                f"frames must have sides of at least {self.reduction} pixels, got "
                f"{tuple(frames.shape[3:])}"
            )
        batch, length = frames.shape[:2]
        x, maps = (frames.flatten(0, 1) - 0.5) / 0.25, []
        x = x.contiguous(memory_format=torch.channels_last)
        for i, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if i else x)
            maps.append(x)
        after: States = []
        height, width = x.shape[2:]
        ids = None
        if not self.memory:  # another id at every frame: the state begins anew
            ids = torch.arange(length, device=x.device).expand(batch * height * width, length)
        for number, (space, time) in enumerate(zip(self.space, self.time)):
            x = x + space(x)
            rows = x.unflatten(0, (batch, length)).permute(0, 3, 4, 1, 2).flatten(0, 2)
            before = states[number] if states and self.memory else None
            y, kept = time(rows, before, ids)
            after.append(kept)
            y = y.unflatten(0, (batch, height, width)).permute(0, 3, 4, 1, 2).flatten(0, 1)
            x = x + y
        maps[-1] = x.contiguous(memory_format=torch.channels_last)
        return maps, after if self.memory else []


class MatteNetwork(nn.Module):
    """Clips to an alpha matte per frame: ``FrameMemory``, then its maps joined upwards.

    Args:
        memory: the encoder.
    """

    def __init__(self, memory: FrameMemory) -> None:
        super().__init__()
        self.encoder = memory
        dims = memory.dims
        below = [dims[-1], *reversed(dims[1:-1])]
        self.joins = nn.ModuleList(
            Join(deep, beside, beside, "conv") for deep, beside in zip(below, reversed(dims[:-1]))
        )
        self.head = nn.Conv2d(dims[0], 1, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, frames: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Returns the logits of alpha (B, L, 1, H, W), and the states after the last frame."""
        maps, states = self.encoder(frames, states)
        y = maps[-1]
        for join, skip in zip(self.joins, reversed(maps[:-1])):
            y = join(y, skip)
        return self.head(y).unflatten(0, frames.shape[:2]), states


class ClipNetwork(nn.Module):
    """Clips to logits of classes after every frame: ``FrameMemory``, the mean and the greatest
    value over the coarse map, a linear head.

    Args:
        memory: the encoder.
        num_classes: K.
    """

    def __init__(self, memory: FrameMemory, num_classes: int) -> None:
        super().__init__()
        self.encoder = memory
        self.head = nn.Linear(2 * memory.dims[-1], check_positive("num_classes", num_classes))

    def forward(self, frames: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Returns logits after every frame (B, L, K), and the states after the last one."""
        maps, states = self.encoder(frames, states)
        pooled = torch.cat([maps[-1].mean((2, 3)), maps[-1].amax((2, 3))], 1)
        return self.head(pooled).unflatten(0, frames.shape[:2]), states
