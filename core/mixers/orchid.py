"""Orchid: a global convolution whose kernel is computed from the sequence itself; not causal."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers._hyena_filter import HyenaFilter
from longseq.core.mixers._submodules import conv_weights, holding
from longseq.core.mixers.base import Mixer, State, register_mixer
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.dct import dct, idct
from longseq.core.ops.fft_conv import segment_table, work_dtype
from longseq.core.ops.precision import autocast_off

_KINDS = ("absfreq", "corrTime")
_TRANSFORMS = ("dct", "fft")


class _LocalConv(nn.Module):
    """A centred depthwise convolution along positions or frequencies of (B, L, D), then a layer
    norm.

    Args:
        width: of the input.
        out: of the output.
        groups: of the convolution.
        taps: of the convolution, odd.
    """

    def __init__(self, width: int, out: int, groups: int, taps: int) -> None:
        super().__init__()
        self.conv1d_ls = nn.ModuleList(
            [nn.Conv1d(width, out, taps, groups=groups, padding=taps // 2)]
        )
        self.norm_ls = nn.ModuleList([nn.ModuleDict({"norm_conv_kernel": nn.LayerNorm(out)})])

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.conv1d_ls[0], self.norm_ls[0].get_submodule("norm_conv_kernel")
        conv = holding(conv, nn.Conv1d, "conv1d_ls")
        norm = holding(norm, nn.LayerNorm, "norm_conv_kernel")
        assert conv.bias is not None
        weight, bias, scale, shift = (
            p.to(x.dtype) for p in (conv.weight, conv.bias, norm.weight, norm.bias)
        )
        y = nn.functional.conv1d(
            x.transpose(1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=conv.groups
        )
        return nn.functional.layer_norm(
            y.transpose(1, 2), norm.normalized_shape, scale, shift, norm.eps
        )


class _Conditioning(nn.Module):
    """The network from a sequence to the spectrum of its kernel.

    Args:
        d_model: width D.
        kind: ``absfreq`` takes the size of the spectrum, ``corrTime`` correlates two filtered
            copies.
        transform: ``dct`` or ``fft``.
        taps: of the local convolutions.
    """

    def __init__(self, d_model: int, kind: str, transform: str, taps: int) -> None:
        super().__init__()
        self.kind, self.transform = kind, transform
        spectrum = 1 if transform == "dct" else 2  # a complex spectrum has two values per bin
        if kind == "absfreq":
            self.nn_model = _LocalConv(d_model, d_model, d_model, taps)
            self.nn_model2 = _LocalConv(d_model, spectrum * d_model, d_model, taps)
        else:
            self.nn_model_k = _LocalConv(d_model, d_model, d_model, taps)
            self.nn_model_q = _LocalConv(d_model, d_model, d_model, taps)
            self.nn_model_frq = _LocalConv(spectrum * d_model, spectrum * d_model, d_model, taps)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, L, D) to the kernel's spectrum (B, D, bins)."""
        if self.kind == "absfreq":
            bins = _spectrum(self.nn_model(x), self.transform)
            if self.transform == "dct":
                return self.nn_model2(bins.abs()).transpose(1, 2)
            power = bins.real.square() + bins.imag.square()
            h = self.nn_model2(power).transpose(1, 2)
            return torch.complex(h[:, ::2], h[:, 1::2])
        product = _spectrum(self.nn_model_k(x), self.transform).conj() * _spectrum(
            self.nn_model_q(x), self.transform
        )
        if self.transform == "dct":
            return self.nn_model_frq(product).transpose(1, 2)
        h = self.nn_model_frq(torch.cat([product.real, product.imag], -1)).transpose(1, 2)
        return torch.complex(*h.chunk(2, 1))


def _spectrum(x: Tensor, transform: str) -> Tensor:
    """Returns the spectrum (B, bins, D) of x (B, L, D) along the positions."""
    if transform == "dct":
        return dct(x.transpose(1, 2)).transpose(1, 2)
    return torch.fft.rfft(x, dim=1, norm="forward")


def _filtered(x: Tensor, spectrum: Tensor, transform: str) -> Tensor:
    """Multiplies the spectrum of x (B, D, L) by ``spectrum`` (…, D, bins) and transforms back."""
    if transform == "dct":
        return idct(dct(x) * spectrum)
    return torch.fft.irfft(
        torch.fft.rfft(x, norm="forward") * spectrum, n=x.shape[-1], norm="forward"
    )


@register_mixer("orchid")
class Orchid(Mixer):
    """Orchid operator, arXiv 2402.18508.

    ``x_0, x_1, v = short_conv(in(u))``, ``y = out(x_0 ⊙ (h * (x_1 ⊙ v)) + h_res * u)``, where the
    spectrum of ``h`` is that of a fixed implicit filter plus ``conditioning(in(u)_v)``, and ``*``
    multiplies spectra: a circular convolution for ``fft``, a symmetric one for ``dct``. Every
    output sees the whole sequence, so there is no state; packed segments are computed apart.

    Args:
        d_model: width D.
        l_max: length of the fixed filters' table; longer sequences are refused.
        kind: conditioning network: ``absfreq`` (size of the spectrum) or ``corrTime``
            (cross-correlation).
        transform: ``dct`` (orthonormal, of type II) or ``fft`` (scaled by 1/L).
        filter_order: width of the fixed filter's MLP.
        emb_dim: width of its positional embedding, odd.
        num_inner_mlps: its hidden layers after the first.
        activation_freq: initial frequency of its sines.
        short_filter_order: taps of the short convolution.
        conv_filter_size: taps of the conditioning network's convolutions, odd.
        residual: whether the second fixed filter ``h_res`` convolves the input.

    Raises:
        ConfigError: for a wrong size or an unknown choice; in ``forward`` for a state, or for more
            than l_max positions.
    """

    causal = False
    closed_length = "its spectra depend on whether the length is even; export it for one length"

    def __init__(
        self,
        d_model: int,
        l_max: int = 1024,
        kind: Literal["absfreq", "corrTime"] = "absfreq",
        transform: Literal["dct", "fft"] = "dct",
        filter_order: int = 64,
        emb_dim: int = 3,
        num_inner_mlps: int = 2,
        activation_freq: float = 1.0,
        short_filter_order: int = 3,
        conv_filter_size: int = 3,
        residual: bool = True,
    ) -> None:
        super().__init__(d_model)
        for name, value, known in (("kind", kind, _KINDS), ("transform", transform, _TRANSFORMS)):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is unknown; {did_you_mean(value, known)}")
        check_positive("short_filter_order", short_filter_order)
        if check_positive("conv_filter_size", conv_filter_size) % 2 == 0:
            raise ConfigError(f"conv_filter_size must be odd, got {conv_filter_size}")
        self.transform = transform
        self.in_linear = nn.Linear(d_model, 3 * d_model)
        self.out_linear = nn.Linear(d_model, d_model)
        self.conv1d_short = nn.Conv1d(
            3 * d_model,
            3 * d_model,
            short_filter_order,
            groups=3 * d_model,
            padding=short_filter_order - 1,
        )
        shape = (d_model, l_max, filter_order, emb_dim, num_inner_mlps, activation_freq)
        self.fixed_conv = HyenaFilter(*shape, shift=0.0)
        self.fixed_conv_res = HyenaFilter(*shape, shift=0.0) if residual else None
        self.conv_kernel_nn = _Conditioning(d_model, kind, transform, conv_filter_size)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is not None:
            raise ConfigError("orchid sees the whole sequence at once: it takes no state")
        if segment_ids is None:
            return self._mix(x), {}
        rows, starts, lengths = segment_table(segment_ids)
        flat, first = x.flatten(0, 1), rows * x.shape[1] + starts
        outputs: list[Tensor] = []
        places: list[Tensor] = []
        for length in lengths.unique().tolist():  # segments of one length are one batch
            place = first[lengths == length].unsqueeze(1) + torch.arange(length, device=x.device)
            outputs.append(self._mix(flat[place]).flatten(0, 1))
            places.append(place.flatten())
        return torch.cat(outputs)[torch.cat(places).argsort()].view(x.shape), {}

    def _mix(self, x: Tensor) -> Tensor:
        """Maps whole sequences (B, L, D) to (B, L, D)."""
        u = self.in_linear(x)
        dtype, length = work_dtype(u), x.shape[1]
        with autocast_off(x):
            u = u.to(dtype)
            adapted = self.conv_kernel_nn(u[..., -self.d_model :])
            mixed, _ = causal_conv1d(u, *conv_weights(self.conv1d_short, "conv1d_short"))
            gate_out, gate_in, v = mixed.transpose(1, 2).chunk(3, 1)
            v = v * gate_in
            y = _filtered(v, self._fixed(self.fixed_conv, length) + adapted, self.transform)
            y = (y + self.fixed_conv.bias.to(dtype).unsqueeze(-1) * v) * gate_out
            if self.fixed_conv_res is not None:
                whole = x.to(dtype).transpose(1, 2)
                y = y + _filtered(whole, self._fixed(self.fixed_conv_res, length), self.transform)
                y = y + self.fixed_conv_res.bias.to(dtype).unsqueeze(-1) * whole
        return self.out_linear(y.transpose(1, 2).to(x.dtype))

    def _fixed(self, filter_fn: HyenaFilter, length: int) -> Tensor:
        """Returns the spectrum (D, bins) of a fixed filter."""
        return _spectrum(filter_fn(length).T.unsqueeze(0), self.transform)[0].transpose(0, 1)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        return {}
