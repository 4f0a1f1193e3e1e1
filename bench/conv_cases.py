"""Convolutions in the speed benchmarks: long, short, and S4D's kernel; their peers and their
bounds."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.bench.case_tools import Tensors, draws, make_program, moved_bytes, ours, turned
from longseq.bench.measure import Case, Mode, Program, Shape, Side, Work
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.s4_kernel import vandermonde_kernel


def _long_inputs(shape: Shape) -> Tensors:
    draw = draws()
    decay = torch.exp(-torch.linspace(0, 8, shape.length))
    return {
        "u": draw(shape.batch, shape.length, shape.width).to(shape.torch_dtype),
        "k": draw(shape.width, shape.length) * decay / math.sqrt(shape.length),
        "skip": draw(shape.width),
    }


def _long_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(lambda u, k, skip: fft_conv(u, k, skip), tensors)


def plain_fft_conv(u: Tensor, k: Tensor, skip: Tensor) -> Tensor:
    """The textbook form, as in published torch code: spectra of twice the length, u (B, D, L)."""
    size = 2 * u.shape[-1]
    x = u.float()
    spectrum = torch.fft.rfft(x, n=size) * torch.fft.rfft(k.float(), n=size)
    y = torch.fft.irfft(spectrum, n=size)[..., : u.shape[-1]] + x * skip.float().unsqueeze(-1)
    return y.to(u.dtype)


def _long_plain(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(
        lambda u, k, skip: plain_fft_conv(u, k, skip).transpose(1, 2),
        turned(tensors, "u"),
        transposed=True,
    )


def long_conv_work(shape: Shape, mode: Mode) -> Work:
    """The work of real FFTs of twice the length: of input, kernel, output; the backward has two
    more."""
    size, rows = 2 * shape.length, shape.width * (2 * shape.batch + 1)
    times = 3 if mode == "training" else 1
    fma = times * rows * 1.25 * size * math.log2(size)
    values = shape.batch * shape.length * shape.width
    return Work(
        fma, 0, moved_bytes(shape, mode, values, values) + 4.0 * shape.length * shape.width * times
    )


def _short_inputs(shape: Shape) -> Tensors:
    draw, width = draws(), 2 * shape.width
    tensors = {
        "x": draw(shape.batch, shape.length, width),
        "weight": draw(width, 4),
        "bias": draw(width),
    }
    return {name: tensor.to(shape.torch_dtype) for name, tensor in tensors.items()}


def _short_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    return make_program(
        lambda x, weight, bias: causal_conv1d(x, weight, bias, activation="silu")[0], tensors
    )


def _short_plain(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv1d(x, weight.unsqueeze(1), bias, padding=3, groups=x.shape[1])
        return F.silu(y[..., : x.shape[2]]).transpose(1, 2)

    return make_program(call, turned(tensors, "x"), transposed=True)


def _short_work(shape: Shape, mode: Mode) -> Work:
    values = shape.batch * shape.length * 2 * shape.width
    times = 3 if mode == "training" else 1
    return Work(times * 4 * values, values, moved_bytes(shape, mode, values, values))


def _kernel_inputs(shape: Shape) -> Tensors:
    draw, pairs = draws(), 32
    frequency = math.pi * torch.arange(pairs).repeat(shape.width, 1)
    step = torch.exp(torch.linspace(math.log(1e-3), math.log(0.1), shape.width)).unsqueeze(1)
    weights = torch.complex(draw(shape.width, pairs), draw(shape.width, pairs))
    return {
        "weights": weights * step,
        "log_a": step * torch.complex(torch.full_like(frequency, -0.5), frequency),
    }


def _kernel_ours(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    def call(weights: Tensor, log_a: Tensor) -> Tensor:
        wide = torch.complex128  # as the layers call it
        return vandermonde_kernel(torch.exp(log_a.to(wide)), weights.to(wide), shape.length).float()

    return make_program(call, tensors)


def _kernel_plain(tensors: Tensors, shape: Shape, mode: Mode) -> Program:
    positions = torch.arange(shape.length)

    def call(weights: Tensor, log_a: Tensor) -> Tensor:
        powers = torch.exp(log_a.unsqueeze(-1) * positions)  # (H, N, L), as in the paper's listing
        return torch.einsum("hn,hnl->hl", weights, powers).real

    return make_program(call, tensors)


def _kernel_work(shape: Shape, mode: Mode) -> Work:
    values, pairs, times = shape.width * shape.length, 32, 3 if mode == "training" else 1
    return Work(
        times * 2 * values * pairs,
        4 * shape.width * pairs * math.sqrt(shape.length) * times,
        4.0 * values * times,
    )


CONVOLUTIONS: tuple[Case, ...] = (
    Case(
        "fft_conv",
        "long convolution: channels D, as many taps as positions",
        "operator",
        _long_inputs,
        (ours(_long_ours), Side("torch.fft", _long_plain, note="textbook form")),
        long_conv_work,
    ),
    Case(
        "causal_conv1d",
        "short convolution and SiLU: channels 2·D, 4 taps",
        "operator",
        _short_inputs,
        (ours(_short_ours), Side("torch", _short_plain, note="F.conv1d, F.silu")),
        _short_work,
    ),
    Case(
        "s4d_kernel",
        "S4D: the convolution's kernel, D channels, 32 complex states",
        "operator",
        _kernel_inputs,
        (ours(_kernel_ours), Side("torch", _kernel_plain, note="with a tensor of size (H, N, L)")),
        _kernel_work,
        dtypes=("float32",),
        longest=1 << 16,
    ),
)
