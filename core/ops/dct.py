"""Orthonormal discrete cosine transform (type II) and its inverse, by one real FFT of the same
length."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _twiddle(length: int, like: Tensor) -> Tensor:
    """Returns exp(-iπk/2L) for the bins k = 0 … L/2 of a real FFT."""
    angle = (
        -0.5
        * math.pi
        / length
        * torch.arange(length // 2 + 1, device=like.device, dtype=like.dtype)
    )
    return torch.polar(torch.ones_like(angle), angle)


def dct(x: Tensor) -> Tensor:
    """Returns ``X[k] = c_k Σ_t x[t]·cos(π(2t + 1)k / 2L)``, c_0 = √(1/L), c_k = √(2/L), along the
    last axis.

    Args:
        x: real (…, L).
    """
    length = x.shape[-1]
    # Even positions, then odd ones backwards: the cosine sum becomes half a period of a Fourier
    # sum.
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    bins = torch.fft.rfft(folded) * _twiddle(length, x)
    whole = torch.cat([bins.real, -bins.imag[..., 1 : (length + 1) // 2].flip(-1)], -1)
    whole = whole * math.sqrt(2 / length)
    return torch.cat([whole[..., :1] * math.sqrt(0.5), whole[..., 1:]], -1)


def idct(x: Tensor) -> Tensor:
    """Returns the inverse of ``dct`` along the last axis.

    Args:
        x: real (…, L).
    """
    length = x.shape[-1]
    x = torch.cat([x[..., :1] * math.sqrt(2), x[..., 1:]], -1) * math.sqrt(length / 2)
    half = length // 2 + 1
    mirrored = torch.cat([torch.zeros_like(x[..., :1]), x.flip(-1)[..., : half - 1]], -1)
    bins = torch.complex(x[..., :half], -mirrored)
    folded = torch.fft.irfft(bins * _twiddle(length, x).conj(), n=length)
    even = (length + 1) // 2
    pairs = torch.stack(
        [
            folded[..., :even],
            torch.nn.functional.pad(folded[..., even:].flip(-1), (0, 2 * even - length)),
        ],
        -1,
    )
    return pairs.flatten(-2)[..., :length]


def dct_reference(x: Tensor) -> Tensor:
    """The cosine sum that ``dct`` equals, as a matrix product; same argument and result."""
    length = x.shape[-1]
    k = torch.arange(length, dtype=x.dtype, device=x.device)
    basis = torch.cos(math.pi / (2 * length) * torch.outer(k, 2 * k + 1)) * math.sqrt(2 / length)
    basis[0] *= math.sqrt(0.5)
    return x @ basis.T
