"""SGConv: a long convolution whose kernel is a few short ones, stretched to growing scales and
decaying."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers._linear import mix_gelu
from longseq.core.mixers.base import Mixer, State, register_mixer
from longseq.core.mixers.long_conv import check_probability, multi_channel_conv, output_map
from longseq.core.ops.fft_conv import carry_history, work_dtype

_OUTPUTS = ("glu", "linear", "none")
_COMBINE = ("cat", "sum")
_INTERPOLATE = ("linear", "nearest")


@register_mixer("sgconv")
class SGConv(Mixer):
    """Structured global convolution, arXiv 2210.09298.

    ``k = [w_0↑, w_1↑/α, w_2↑/α², …] / norm``: sub-kernel i has kernel_dim learned values, stretched
    by interpolation to ``kernel_dim·2^max(i-1, 0)`` taps and weighed by ``α^(n_scales-1-i)`` before
    the whole is divided by its norm at construction; then ``y = out(gelu(k * u + D·u))``. So the
    parameters grow with log l_max, and distant taps are small. Beyond its taps the kernel is zero,
    and the state carries that many inputs.

    Args:
        d_model: width D.
        l_max: length that the scales together reach.
        kernel_dim: learned values of a sub-kernel.
        n_scales: number of sub-kernels; from l_max if None.
        channels: kernels for each channel.
        decay_min: base of the decay in the first channel.
        decay_max: base of the decay in the last.
        combine: ``cat`` lays the sub-kernels end to end, ``sum`` adds them from position 0.
        interpolate: ``linear`` or ``nearest``.
        dropout: after the activation.
        postact: ``linear``, ``glu`` or ``none``.

    Raises:
        ConfigError: for a wrong size or an unknown choice.
    """

    finite_state: ClassVar[bool] = False

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        kernel_dim: int = 64,
        n_scales: int | None = None,
        channels: int = 1,
        decay_min: float = 2.0,
        decay_max: float = 2.0,
        combine: Literal["cat", "sum"] = "cat",
        interpolate: Literal["linear", "nearest"] = "linear",
        dropout: float = 0.0,
        postact: Literal["glu", "linear", "none"] = "linear",
    ) -> None:
        super().__init__(d_model)
        check_positive("l_max", l_max)
        self.kernel_dim = check_positive("kernel_dim", kernel_dim)
        check_positive("channels", channels)
        for name, value, known in (
            ("combine", combine, _COMBINE),
            ("interpolate", interpolate, _INTERPOLATE),
            ("postact", postact, _OUTPUTS),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is unknown; {did_you_mean(value, known)}")
        for name, base in (("decay_min", decay_min), ("decay_max", decay_max)):
            if base <= 0:
                raise ConfigError(f"{name} must be above 0, got {base!r}")
        if postact == "none" and channels > 1:
            raise ConfigError("postact 'none' leaves channels unmixed and needs channels = 1")
        if n_scales is None:
            n_scales = 1 + max(0, math.ceil(math.log2(l_max / kernel_dim)))
        self.n_scales = check_positive("n_scales", n_scales)
        self.combine, self.interpolate = combine, interpolate
        self.taps = kernel_dim * 2 ** (n_scales - 1)
        self.D = nn.Parameter(torch.randn(channels, d_model))
        self.kernel_list = nn.ParameterList(
            torch.randn(channels, d_model, kernel_dim) for _ in range(n_scales)
        )
        self.multiplier: Tensor
        self.register_buffer(
            "multiplier", torch.linspace(decay_min, decay_max, d_model).view(1, -1, 1)
        )
        self.kernel_norm: Tensor
        self.register_buffer("kernel_norm", torch.ones(channels, d_model, 1))
        # The published layout marks whether the norm was measured; here it is, at construction.
        self.register_buffer("kernel_norm_initialized", torch.tensor(True))
        with torch.no_grad():
            self.kernel_norm.copy_(self.kernel().norm(dim=-1, keepdim=True))
        names = tuple(f"kernel_list.{i}" for i in range(n_scales))
        self.ssm_parameters = names  # type: ignore[misc]  # how many there are depends on n_scales
        self.dropout = nn.Dropout(check_probability("dropout", dropout))
        self.output_linear = output_map(postact, d_model * channels, d_model)

    def kernel(self) -> Tensor:
        """Returns the kernel (channels, D, taps) in float32 or float64."""
        parts: list[Tensor] = []
        for i, weights in enumerate(self.kernel_list):
            w = weights.to(work_dtype(weights))
            stretch = 2 ** (i if self.combine == "sum" else max(0, i - 1))
            if stretch > 1:
                w = nn.functional.interpolate(w, scale_factor=float(stretch), mode=self.interpolate)
            parts.append(w * self.multiplier.to(w.dtype) ** (self.n_scales - 1 - i))
        if self.combine == "cat":
            k = torch.cat(parts, -1)
        else:
            k = torch.stack(
                [nn.functional.pad(p, (0, self.taps - p.shape[-1])) for p in parts]
            ).sum(0)
        return k / self.kernel_norm.to(k.dtype)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        history = None if state is None else state["conv_history"]
        y = multi_channel_conv(x, self.kernel(), self.D, history, segment_ids)
        y = mix_gelu(self.output_linear, self.dropout, y)
        return y, {"conv_history": carry_history(x, history, self.taps - 1, segment_ids)}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        return {"conv_history": torch.zeros(batch, 0, self.d_model, device=device, dtype=dtype)}

    def state_size(self, length: int) -> int:
        return self.d_model * min(length, self.taps - 1)
