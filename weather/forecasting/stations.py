"""Message passing between irregular stations on a periodic domain, with a virtual node."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.backbone import Layer
from longseq.core.checks import check_number, check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import State, create_mixer
from longseq.weather.forecasting.places import neighbours

Memory = tuple[Tensor, list[State]]
"""The last known values (B, 1, C, 1, K), and the states of the layers' mixers."""


def fill_forward(frames: Tensor, before: Tensor) -> Tensor:
    """Returns frames in which what is missing (not a number) is what was last known.

    Args:
        frames: (B, L, …).
        before: (B, 1, …), what was known before the first.
    """
    made, last = [], before
    for frame in frames.split(1, 1):
        last = torch.where(frame.isnan(), last, frame)
        made.append(last)
    return torch.cat(made, 1) if made else frames


class StationLayer(nn.Module):
    """A mixer over time, then messages: with h_i the normalised features of station i,

        m_i = mean_j φ(x_j - x_i) ⊙ W h_j   over the k nearest stations j,
        v ← v + ψ(v, mean_i h_i),   h_i ← h_i + χ(h_i, m_i, v),

    a continuous filter (arXiv 1706.08566) and a virtual node v that every station exchanges with
    (arXiv 1704.01212, 5.2). The virtual node is the last row of the features.

    Args:
        width: channels D.
        mixer: a mixer's name, or "none".
        virtual: whether there is a virtual node.
    """

    def __init__(self, width: int, mixer: str, virtual: bool) -> None:
        super().__init__()
        self.virtual = virtual
        self.time = None
        if mixer != "none":
            self.time = Layer(create_mixer(mixer, width), 0.0, "rms", 0.0)
            if not self.time.mixer.causal:
                raise ConfigError(f"a forecast needs a causal mixer, and {mixer} is not")
        self.norm = nn.RMSNorm(width)
        self.filter = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.send = nn.Linear(width, width)
        self.update = self._mlp((2 + virtual) * width, width)
        self.gather = self._mlp(2 * width, width) if virtual else None

    @staticmethod
    def _mlp(given: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(given, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(
        self, x: Tensor, index: Tensor, way: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Maps (B, K + virtual, L, D).

        Args:
            x: features.
            index: nearest stations (B, K, k).
            way: distances to the east, to the north and in all (B, K, k, 3).
            state: of the mixer.
        """
        made: State = {}
        if self.time is not None:
            flat, made = self.time(x.flatten(0, 1), state, None)
            x = flat.unflatten(0, x.shape[:2])
        count = index.shape[1]
        h = self.norm(x)
        own, sent = h[:, :count], self.send(h[:, :count])
        message = torch.zeros_like(own)
        if index.shape[2]:
            rows = torch.arange(len(x), device=x.device)[:, None, None]
            message = (self.filter(way)[:, :, :, None] * sent[rows, index]).mean(2)
        if self.gather is None:
            return x + self.update(torch.cat([own, message], -1)), made
        node = x[:, count:]
        node = node + self.gather(torch.cat([h[:, count:], own.mean(1, keepdim=True)], -1))
        told = self.norm(node).expand_as(own)
        stations = x[:, :count] + self.update(torch.cat([own, message, told], -1))
        return torch.cat([stations, node], 1), made


class StationModel(nn.Module):
    """Frames of stations (B, L, C, 1, K), NaN where missing, to the frames that follow each: the
    last known value + head(layers(stem)). Stations may be in any order, and the domain may be moved
    round; another set of stations will do too.

    Args:
        channels: C.
        width: channels inside.
        n_layers: layers.
        neighbours: nearest stations k of each that send it messages.
        virtual: whether there is a virtual node.
        mixer: over time at every station and the virtual node; "none" looks at one frame only.
        reach: length in sides of the domain that is 1 in the filters.
    """

    def __init__(
        self,
        channels: int = 2,
        width: int = 48,
        n_layers: int = 3,
        neighbours: int = 8,
        virtual: bool = True,
        mixer: str = "rg_lru",
        reach: float = 0.1,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "width": width, "n_layers": n_layers}
        for name, value in {**sizes, "neighbours": neighbours}.items():
            check_positive(name, value)
        if not check_number("reach", reach) > 0:
            raise ConfigError(f"reach must be above zero, got {reach}")
        self.channels, self.neighbours, self.reach = channels, neighbours, reach
        self.stem = nn.Linear(2 * channels, width)
        self.node = nn.Parameter(torch.randn(width)) if virtual else None
        self.layers = nn.ModuleList(StationLayer(width, mixer, virtual) for _ in range(n_layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, frames: Tensor, places: Tensor, memory: Memory | None = None
    ) -> tuple[Tensor, Memory]:
        """Predicts the next frame of every frame.

        Args:
            frames: (B, L, C, 1, K), or the next ones of a sequence; NaN where missing.
            places: rows and columns in sides of the domain (B, K, 2).
            memory: after the frames before; None at the start.

        Returns:
            Predictions of the same shape, without gaps, and the memory.

        Raises:
            ArgumentError: for frames and places that do not fit.
        """
        wanted = (len(frames), frames.shape[-1], 2)
        if frames.dim() != 5 or frames.shape[2:4] != (self.channels, 1) or places.shape != wanted:
            raise ArgumentError(
                f"frames must be (B, L, {self.channels}, 1, K) and places (B, K, 2), got "
                f"{tuple(frames.shape)} and {tuple(places.shape)}"
            )
        if not frames.shape[-1] or not frames.shape[1]:
            raise ArgumentError("there must be a station and a frame at least")
        index, way = neighbours(places, self.neighbours)
        size = way.square().sum(-1, keepdim=True).sqrt()
        way = torch.cat([way, size], -1).to(frames.dtype) / self.reach
        before = torch.zeros_like(frames[:, :1]) if memory is None else memory[0]
        known = fill_forward(frames, before)
        seen = torch.cat([known, (~frames.isnan()).to(frames.dtype)], 2)
        x = F.gelu(self.stem(seen.squeeze(3).permute(0, 3, 1, 2)))
        if self.node is not None:
            node = self.node.to(x.dtype).expand(len(x), 1, x.shape[2], -1)
            x = torch.cat([x, node], 1)
        states: list[State] = []
        for i, layer in enumerate(self.layers):
            x, state = layer(x, index, way, None if memory is None else memory[1][i])
            states.append(state)
        change = self.head(self.norm(x[:, : frames.shape[-1]]))
        return known + change.permute(0, 2, 3, 1).unsqueeze(3), (known[:, -1:], states)

    def rollout(self, context: Tensor, places: Tensor, count: int) -> Iterator[Tensor]:
        """Yields the frames after a context (B, L, C, 1, K) one by one, each fed back."""
        predicted, memory = self(context, places)
        frame = predicted[:, -1:]
        for index in range(count):
            if index:
                frame, memory = self(frame, places, memory)
            yield frame[:, 0]
