"""LongConv: a convolution with an explicitly learned long kernel, regularised by squash and
smooth."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers._linear import LinearGLU, mix_gelu
from longseq.core.mixers.base import Mixer, State, register_mixer
from longseq.core.ops.fft_conv import carry_history, fft_conv, work_dtype

_INITIALISERS = ("random", "double_exp")
_OUTPUTS = ("glu", "linear", "none")


def check_probability(name: str, value: float) -> float:
    """Returns ``value`` if it lies in [0, 1).

    Raises:
        ConfigError: otherwise.
    """
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and below 1, got {value!r}")
    return value


class LongConvKernel(nn.Module):
    """The learned kernel (channels, D, l_max), smoothed by a moving average and squashed by a soft
    threshold.

    ``squash(k) = sign(k)·max(abs(k) - lam, 0)`` keeps the kernel sparse in time.

    Args:
        d_model: width D.
        l_max: taps.
        channels: kernels for each channel of the input.
        lam: threshold.
        weight_init: ``random``, or ``double_exp``: windows that decay faster from channel to
            channel.
        smooth_window: positions of the moving average, odd; 1 for none.
        kernel_dropout: part of the taps dropped in training.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int,
        channels: int,
        lam: float,
        weight_init: str,
        smooth_window: int,
        kernel_dropout: float,
    ) -> None:
        super().__init__()
        if lam < 0:
            raise ConfigError(f"lam must be at least 0, got {lam!r}")
        if weight_init not in _INITIALISERS:
            raise ConfigError(
                f"weight_init {weight_init!r} is unknown; "
                f"{did_you_mean(weight_init, _INITIALISERS)}"
            )
        if check_positive("smooth_window", smooth_window) % 2 == 0:
            raise ConfigError(f"smooth_window must be odd, got {smooth_window}")
        check_probability("kernel_dropout", kernel_dropout)
        self.lam, self.smooth_window, self.kernel_dropout = lam, smooth_window, kernel_dropout
        kernel = torch.randn(channels, d_model, l_max)
        if weight_init == "random":
            kernel = 0.002 * kernel
        else:
            rate = float(max(1, d_model // 2)) ** (torch.arange(d_model) / d_model)
            kernel = 0.02 * kernel * torch.exp(-rate[:, None] * torch.arange(l_max) / l_max)
        self.kernel = nn.Parameter(kernel)

    def forward(self) -> Tensor:
        """Returns the kernel (channels, D, l_max) in float32 or float64."""
        k = self.kernel.to(work_dtype(self.kernel))
        if self.smooth_window > 1:
            k = nn.functional.avg_pool1d(
                k, self.smooth_window, stride=1, padding=self.smooth_window // 2
            )
        k = nn.functional.softshrink(k, self.lam)
        return nn.functional.dropout(k, self.kernel_dropout, self.training)


@register_mixer("long_conv")
class LongConv(Mixer):
    """Simple hardware-efficient long convolution, arXiv 2302.06646.

    ``y = out(gelu(k * u + D·u))``, ``k = squash(smooth(kernel))``, out a gated linear unit. The
    kernel has l_max taps: a longer sequence is convolved with a sliding window, and the state
    carries the last l_max - 1 inputs.

    Args:
        d_model: width D.
        l_max: taps of the kernel.
        channels: kernels for each channel; their outputs are mixed by ``output_linear``.
        lam: threshold of the squash.
        weight_init: ``random`` or ``double_exp``.
        smooth_window: positions of the moving average over the kernel, odd; 1 for none.
        kernel_dropout: part of the taps dropped in training.
        dropout: after the activation.
        postact: ``glu``, ``linear``, or ``none`` to leave the outputs unmixed.

    Raises:
        ConfigError: for a wrong size or an unknown choice.
    """

    finite_state: ClassVar[bool] = False
    ssm_parameters: ClassVar[tuple[str, ...]] = ("kernel.kernel",)

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        channels: int = 1,
        lam: float = 0.1,
        weight_init: Literal["random", "double_exp"] = "random",
        smooth_window: int = 1,
        kernel_dropout: float = 0.0,
        dropout: float = 0.0,
        postact: Literal["glu", "linear", "none"] = "glu",
    ) -> None:
        super().__init__(d_model)
        self.l_max = check_positive("l_max", l_max)
        self.channels = check_positive("channels", channels)
        if postact not in _OUTPUTS:
            raise ConfigError(f"postact {postact!r} is unknown; {did_you_mean(postact, _OUTPUTS)}")
        if postact == "none" and channels > 1:
            raise ConfigError("postact 'none' leaves channels unmixed and needs channels = 1")
        self.D = nn.Parameter(torch.randn(channels, d_model))
        self.kernel = LongConvKernel(
            d_model, l_max, channels, lam, weight_init, smooth_window, kernel_dropout
        )
        self.dropout = nn.Dropout(check_probability("dropout", dropout))
        self.output_linear = output_map(postact, d_model * channels, d_model)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        history = None if state is None else state["conv_history"]
        y = multi_channel_conv(x, self.kernel(), self.D, history, segment_ids)
        y = mix_gelu(self.output_linear, self.dropout, y)
        return y, {"conv_history": carry_history(x, history, self.l_max - 1, segment_ids)}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        return {"conv_history": torch.zeros(batch, 0, self.d_model, device=device, dtype=dtype)}

    def state_size(self, length: int) -> int:
        return self.d_model * min(length, self.l_max - 1)


def multi_channel_conv(
    x: Tensor, k: Tensor, skip: Tensor, history: Tensor | None, segment_ids: Tensor | None
) -> Tensor:
    """Convolves every channel of x (B, L, D) with several kernels.

    Args:
        x: input (B, L, D).
        k: kernels (C, D, taps).
        skip: weights (C, D) of direct connections.
        history: inputs (B, H, D) before position 0, or None.
        segment_ids: integers (B, L), or None.

    Returns:
        (B, L, C·D), kernel by kernel.
    """
    channels = k.shape[0]
    if channels > 1:
        x = x.repeat(1, 1, channels)
        history = None if history is None else history.repeat(1, 1, channels)
    return fft_conv(x, k.flatten(0, 1), skip.flatten(), history, segment_ids)


def output_map(postact: str, width: int, d_model: int) -> nn.Module:
    """Returns the map after a convolution: linear layer and gate (keys ``0.*``), linear layer, or
    identity.

    Args:
        postact: ``glu``, ``linear`` or ``none``.
        width: of its input.
        d_model: of its output.
    """
    if postact == "glu":
        return LinearGLU(width, d_model)
    return nn.Linear(width, d_model) if postact == "linear" else nn.Identity()
