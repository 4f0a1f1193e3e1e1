"""Hyena: gated long convolutions whose filters are a sine network of position, as in HyenaDNA."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._hyena_filter import HyenaFilter
from longseq.core.mixers._submodules import conv_weights
from longseq.core.mixers.base import Mixer, State, register_mixer, segment_resets
from longseq.core.ops.causal_conv1d import MAX_WIDTH, causal_conv1d
from longseq.core.ops.fft_conv import carry_history, fft_conv
from longseq.core.ops.gated_conv import gated_conv
from longseq.core.ops.linear_maps import mapped, split_bias
from longseq.core.ops.precision import autocast_dtype

# Without gradients, a longer input goes through position-wise maps in such blocks ...
_POSITIONS = 1 << 16
_CHANNELS = 32  # ... and through the long convolutions so many channels at a time


@register_mixer("hyena")
class Hyena(Mixer):
    """Hyena operator, arXiv 2302.10866, in HyenaDNA's form, arXiv 2306.15794.

    ``x_0, …, x_{N-1}, v = short_conv(in_proj(u))``; then for n = N-1 … 1: ``v ← h_n * (x_n · v) +
    bias_n·x_n·v`` with a causal convolution ``*``, and ``y = out_proj(x_0 · v)``. The long
    convolutions need the whole history: the state carries their inputs, ``(order - 1)·d_model``
    values per position.

    Args:
        d_model: width D.
        l_max: length of the filters' table; history and chunk together may not be longer.
        order: number N of projections beside v, at least 2.
        filter_order: width of the filter's MLP.
        emb_dim: width of the positional embedding, odd.
        short_filter_order: taps of the short convolution.
        num_inner_mlps: hidden layers of the filter's MLP after the first.
        activation_freq: initial frequency of the sine activations.
        train_freq: whether it is trained.
        fast_decay_pct: part of l_max in which the fastest window decays to ``target``.
        slow_decay_pct: the same for the slowest.
        target: what a window decays to.
        shift: floor of the window.

    Raises:
        ConfigError: for a wrong size, and in ``forward`` for more than l_max positions.
    """

    finite_state: ClassVar[bool] = False

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        order: int = 2,
        filter_order: int = 64,
        emb_dim: int = 5,
        short_filter_order: int = 3,
        num_inner_mlps: int = 2,
        activation_freq: float = 10.0,
        train_freq: bool = True,
        fast_decay_pct: float = 0.3,
        slow_decay_pct: float = 1.5,
        target: float = 1e-2,
        shift: float = 0.05,
    ) -> None:
        super().__init__(d_model)
        if check_positive("order", order) < 2:
            raise ConfigError(f"order must be at least 2, got {order}")
        self.order = order
        self.l_max = check_positive("l_max", l_max)
        inner = d_model * (order + 1)
        self.taps = check_positive("short_filter_order", short_filter_order)
        self.in_proj = nn.Linear(d_model, inner)
        self.out_proj = nn.Linear(d_model, d_model)
        self.short_filter = nn.Conv1d(inner, inner, self.taps, padding=self.taps - 1, groups=inner)
        self.filter_fn = HyenaFilter(
            d_model * (order - 1),
            l_max,
            filter_order,
            emb_dim,
            num_inner_mlps,
            activation_freq,
            train_freq,
            fast_decay_pct,
            slow_decay_pct,
            target,
            shift,
        )

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is None:
            blocks = x.shape[1] > _POSITIONS and not torch.is_grad_enabled()
            if segment_ids is None and self.order == 2 and self.taps <= MAX_WIDTH and not blocks:
                return self._forward_whole(x)
            state = self.init_state(x.shape[0], x.device, x.dtype)
        history = state["conv_history"]
        if x.shape[1] > _POSITIONS and segment_ids is None and not torch.is_grad_enabled():
            return self._forward_long(x, state)
        mixed, recent = self._short_conv(x, state["conv_state"], segment_resets(segment_ids))
        *gates, v = mixed.split(self.d_model, -1)
        stepping = x.shape[1] <= history.shape[1]
        kernels = self.filter_fn(history.shape[1] + x.shape[1], stepping).split(self.d_model)
        skips = self.filter_fn.bias.split(self.d_model)
        pasts = history.split(self.d_model, -1)
        inputs: list[Tensor] = []
        for kernel, skip, past, gate in zip(kernels, skips, pasts, reversed(gates[1:])):
            inputs.append(v * gate)
            v = fft_conv(inputs[-1], kernel, skip, past, segment_ids)
        y = mapped(self.out_proj, v * gates[0])
        after = {
            "conv_state": recent,
            "conv_history": carry_history(
                torch.cat(inputs, -1), history, self.l_max, segment_ids, own=True
            ),
        }
        return y, after

    def _forward_whole(self, x: Tensor) -> tuple[Tensor, State]:
        """As ``forward``, for whole sequences and order 2: all between the projections is one
        operator."""
        projected, shift = split_bias(self.in_proj, x)
        kernel = self.filter_fn(x.shape[1])
        weight, bias = conv_weights(self.short_filter, "short_filter")
        y, inputs = gated_conv(projected, weight, bias, kernel, self.filter_fn.bias, shift)
        past = self.taps - 1
        recent = projected[:, max(0, x.shape[1] - past) :] if past else projected[:, :0]
        recent = recent if shift is None else recent + shift
        after = {
            # padded or copied: the slice would keep all of it alive
            "conv_state": nn.functional.pad(recent, (0, 0, past - recent.shape[1], 0)).clone(),
            "conv_history": inputs,
        }
        return mapped(self.out_proj, y), after

    def _short_conv(
        self, x: Tensor, past: Tensor, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        weight, bias = conv_weights(self.short_filter, "short_filter")
        return causal_conv1d(self.in_proj(x), weight, bias, past, resets)

    def _forward_long(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``forward``, in the memory of the gates and one convolution's input beside x.

        Position-wise maps go block by block, convolutions and their filters a few channels at a
        time, and each product replaces its gate.
        """
        history, recent = state["conv_history"], state["conv_state"]
        width, batch, length = self.d_model, x.shape[0], x.shape[1]
        gates: list[
            Tensor
        ] = []  # in the order of use; the first holds the first convolution's input
        for low in range(0, length, _POSITIONS):
            mixed, recent = self._short_conv(x[:, low : low + _POSITIONS], recent)
            *outer, last, v = mixed.split(width, -1)
            if low == 0:
                gates = [mixed.new_empty(batch, length, width) for _ in range(self.order)]
            for gate, value in zip(gates, [v * last, *reversed(outer)]):
                gate[:, low : low + _POSITIONS] = value
        features = self.filter_fn.features(history.shape[1] + length)
        inputs = gates[:-1]
        for n, (v, gate) in enumerate(zip(inputs, gates[1:])):
            for low in range(n * width, (n + 1) * width, _CHANNELS):
                high = min(low + _CHANNELS, (n + 1) * width)
                part = slice(low - n * width, high - n * width)
                kernel, skip = (
                    self.filter_fn.taps(features, low, high),
                    self.filter_fn.bias[low:high],
                )
                gate[..., part] *= fft_conv(v[..., part], kernel, skip, history[..., low:high])
        product = gates[-1]
        after = {
            "conv_state": recent,
            "conv_history": carry_history(
                inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1),
                history,
                self.l_max,
                own=True,
            ),
        }
        del features, inputs, gates
        if autocast_dtype(product) is not None:
            return mapped(self.out_proj, product), after
        for low in range(0, length, _POSITIONS):
            product[:, low : low + _POSITIONS] = self.out_proj(product[:, low : low + _POSITIONS])
        return product, after

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        return {
            "conv_state": torch.zeros(
                batch, self.taps - 1, self.d_model * (self.order + 1), device=device, dtype=dtype
            ),
            "conv_history": torch.zeros(
                batch, 0, (self.order - 1) * self.d_model, device=device, dtype=dtype
            ),
        }

    def state_size(self, length: int) -> int:
        return (self.taps - 1) * self.d_model * (self.order + 1) + (
            self.order - 1
        ) * self.d_model * length
