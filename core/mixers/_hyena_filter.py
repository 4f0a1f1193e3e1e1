"""Hyena's filters: a sine network of position, windowed, as in HyenaDNA."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.ops.arguments import readable
from longseq.core.ops.fft_conv import work_dtype
from longseq.core.ops.linear_maps import ANY_HOOKS, plain_map
from longseq.core.ops.precision import autocast_off

# A larger filter is kept between calls only where positions come few at a time.
_CACHED_VALUES = 1 << 24


class _Sine(nn.Module):
    """``sin(freq · x)`` with a frequency for each channel."""

    freq: Tensor

    def __init__(self, width: int, frequency: float, trained: bool) -> None:
        super().__init__()
        freq = torch.full((1, width), float(frequency))
        if trained:
            self.freq = nn.Parameter(freq)
        else:
            self.register_buffer("freq", freq, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.freq.to(x.dtype) * x)


class _PositionalEmbedding(nn.Module):
    """Tables: z (1, l_max, emb_dim) of time and complex exponentials, t (1, l_max, 1) in [0, 1]."""

    z: Tensor
    t: Tensor

    def __init__(self, emb_dim: int, l_max: int) -> None:
        super().__init__()
        bands = (emb_dim - 1) // 2
        t = torch.linspace(0, 1, l_max)[None, :, None]
        angle = 2 * math.pi * torch.linspace(0, l_max - 1, l_max)[None, :, None] / l_max
        phase = torch.linspace(1e-4, bands - 1, bands)[None, None] * angle
        self.register_buffer("z", torch.cat([t, torch.cos(phase), -torch.sin(phase)], -1))
        self.register_buffer("t", t)


class _Modulation(nn.Module):
    """The window ``exp(-t·abs(delta)) + shift``, a decay for each channel."""

    deltas: Tensor

    def __init__(self, width: int, fast: float, slow: float, target: float, shift: float) -> None:
        super().__init__()
        deltas = torch.linspace(math.log(target) / slow, math.log(target) / fast, width)
        self.register_buffer("deltas", deltas[None, None])
        self.shift = shift

    def forward(self, t: Tensor, h: Tensor, low: int, high: int) -> Tensor:
        rates = self.deltas[..., low:high].to(h.dtype).abs().neg()
        return h * (t * rates).exp_().add_(self.shift)


def _widened(layer: nn.Module, h: Tensor) -> Tensor:
    """Returns a linear map of h, or what was put in its place, computed in h's dtype."""
    if plain_map(layer, ANY_HOOKS):
        assert isinstance(layer, nn.Linear)
        bias = None if layer.bias is None else layer.bias.to(h.dtype)
        return nn.functional.linear(h, layer.weight.to(h.dtype), bias)
    own = next((p.dtype for p in layer.parameters() if p.is_floating_point()), h.dtype)
    y: Tensor = layer(h.to(own))
    return y.to(h.dtype)


class HyenaFilter(nn.Module):
    """The implicit filter ``h(t) = window(t)·MLP(z(t))`` with sine activations, and the weight of
    its skip.

    Args:
        width: channels of the filter.
        l_max: length of the table; a filter of length L is its prefix.
        filter_order: width of the MLP.
        emb_dim: width of the positional embedding, odd, at least 3.
        num_inner_mlps: hidden layers after the first.
        activation_freq: initial frequency of the sines.
        train_freq: whether the frequencies are trained.
        fast_decay_pct: part of l_max after which the fastest window has decayed to ``target``.
        slow_decay_pct: the same for the slowest window.
        target: what a window decays to.
        shift: floor of the window.

    Raises:
        ConfigError: for a wrong size.
    """

    def __init__(
        self,
        width: int,
        l_max: int,
        filter_order: int = 64,
        emb_dim: int = 5,
        num_inner_mlps: int = 2,
        activation_freq: float = 10.0,
        train_freq: bool = True,
        fast_decay_pct: float = 0.3,
        slow_decay_pct: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.05,
    ) -> None:
        super().__init__()
        self.l_max = check_positive("l_max", l_max)
        check_positive("filter_order", filter_order)
        if check_positive("emb_dim", emb_dim) % 2 == 0 or emb_dim < 3:
            raise ConfigError(
                f"emb_dim must be odd and at least 3 (time, cosine and sine), got {emb_dim}"
            )
        if (
            isinstance(num_inner_mlps, bool)
            or not isinstance(num_inner_mlps, int)
            or num_inner_mlps < 0
        ):
            raise ConfigError(
                f"num_inner_mlps must be an integer of at least 0, got {num_inner_mlps!r}"
            )
        for name, value in (("fast_decay_pct", fast_decay_pct), ("slow_decay_pct", slow_decay_pct)):
            if value <= 0:
                raise ConfigError(f"{name} must be above 0, got {value!r}")
        if not 0 < target < 1:
            raise ConfigError(f"target must lie between 0 and 1, got {target!r}")
        self.bias = nn.Parameter(torch.randn(width))
        self.pos_emb = _PositionalEmbedding(emb_dim, l_max)
        # One module, hence one frequency, for all layers.
        sine = _Sine(filter_order, activation_freq, train_freq)
        layers: list[nn.Module] = [nn.Linear(emb_dim, filter_order), sine]
        for _ in range(num_inner_mlps):
            layers += [nn.Linear(filter_order, filter_order), sine]
        self.implicit_filter = nn.Sequential(*layers, nn.Linear(filter_order, width, bias=False))
        self.modulation = _Modulation(width, fast_decay_pct, slow_decay_pct, target, shift)
        # The filter is trained without weight decay, as published; its depth decides the names.
        self.ssm_parameters = tuple(
            f"implicit_filter.{n}" for n, _ in self.implicit_filter.named_parameters()
        )
        self._cache: tuple[tuple[object, ...], list[Tensor], Tensor] | None = None

    def features(self, length: int) -> Tensor:
        """Returns what the network's last map takes: (1, length, filter_order), in float32 or
        float64.

        Raises:
            ConfigError: if ``length`` is beyond the table.
        """
        if length > self.l_max:
            raise ConfigError(
                f"{length} positions (carried history included) are more than l_max = "
                f"{self.l_max}, "
                "the length of the filter's table; shorten the sequence or train with a larger "
                "l_max"
            )
        dtype = work_dtype(self.bias)  # positions need more than bfloat16's 8 bits
        with autocast_off(self.bias):
            h = self.pos_emb.z[:, :length].to(dtype)
            for layer in list(self.implicit_filter)[:-1]:
                h = layer(h) if isinstance(layer, _Sine) else _widened(layer, h)
        return h

    def taps(self, features: Tensor, low: int, high: int) -> Tensor:
        """Returns the taps of channels ``low`` to ``high``, (high - low, length).

        Args:
            features: what ``features`` returned.
            low: first channel.
            high: the channel after the last.
        """
        with autocast_off(self.bias):
            t = self.pos_emb.t[:, : features.shape[1]].to(features.dtype)
            last = self.implicit_filter[-1]
            if plain_map(last, ANY_HOOKS):
                assert isinstance(last, nn.Linear)
                h = nn.functional.linear(features, last.weight[low:high].to(features.dtype))
            else:
                h = _widened(last, features)[..., low:high]
            return self.modulation(t, h, low, high)[0].T

    def forward(self, length: int, stepping: bool = False) -> Tensor:
        """Returns the first ``length`` taps (width, length), in float32 or float64.

        Without gradients the filter is kept between calls until a parameter changes, so that
        stepping does not evaluate the network over all positions again and again.

        Args:
            length: positions.
            stepping: whether the next call will come after few positions: a filter of any size is
                kept then.

        Raises:
            ConfigError: if ``length`` is beyond the table.
        """
        width = self.bias.shape[0]
        weights = list(self.parameters())
        tensors = [*weights, *self.buffers()]
        tracked = torch.is_grad_enabled() and any(p.requires_grad for p in tensors)
        untraceable = not readable(*tensors) or any(p.is_inference() for p in tensors)
        # What was put in a layer's place may change its mind without its parameters changing.
        untraceable |= not all(isinstance(m, _Sine) or plain_map(m) for m in self.implicit_filter)
        if tracked or untraceable or (length * width > _CACHED_VALUES and not stepping):
            return self.taps(self.features(length), 0, width)
        key = tuple((p.data_ptr(), p._version, p.dtype, p.device) for p in tensors)
        if self._cache is not None:
            kept, copies, taps = self._cache
            # A change through ``.data``, as of many averages and optimisers, counts no version.
            if kept == key and taps.shape[1] >= length and all(map(torch.equal, copies, weights)):
                return taps[:, :length]
        # The next power of two: a growing sequence computes it a logarithmic number of times.
        longest = max(length, min(self.l_max, 1 << (length - 1).bit_length()))
        copies = [p.detach().clone() for p in weights]
        self._cache = key, copies, self.taps(self.features(longest), 0, width)
        return self._cache[2][:, :length]

    def __getstate__(self) -> dict[str, object]:
        # A copy has its own tensors, which the key does not name.
        return {**self.__dict__, "_cache": None}
