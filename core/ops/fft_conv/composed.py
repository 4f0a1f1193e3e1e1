"""The long convolution by torch's FFTs, in the memory of a block of channels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Values of one padded spectrum above which channels are processed in blocks.
_BLOCK_VALUES = 1 << 26
SHORT_KERNEL = 8
"""A sequence this many times longer than the kernel is cut into overlapping frames."""


@lru_cache(maxsize=4096)
def fft_size(n: int) -> int:
    """Returns the smallest even 2^a·3^b·5^c that is at least ``n``: sizes at which a real FFT is
    fast.

    Args:
        n: least size, at least 1.
    """
    half, best = max(1, (n + 1) // 2), 1 << (n + 1).bit_length()
    five = 1
    while five < 2 * half:
        three = five
        while three < 2 * half:
            power = three << max(0, (-(-half // three) - 1).bit_length())
            if half <= power < best:
                best = power
            three *= 3
        five *= 5
    return 2 * best


def convolve(x: Tensor, k: Tensor, skip: Tensor | None, new: int) -> Tensor:
    """Convolves x (B, T, D) with k (D, taps) and returns the last ``new`` outputs (B, new, D).

    Args:
        x: inputs, of any precision.
        k: float32 or float64, which is computed in.
        skip: weight (D,) of a direct connection, or None.
        new: number of outputs.
    """
    x = x.to(k.dtype)
    y = _by_blocks(x, k, new)
    return y if skip is None else y + skip * x[:, -new:]


def _by_blocks(x: Tensor, k: Tensor, new: int) -> Tensor:
    """Convolves x (B, T, D) with k (D, taps) and returns the last ``new`` outputs (B, new, D).

    Where the spectra would be large, channels go in blocks whose spectra are computed again in the
    backward pass instead of being kept.
    """
    x = x.transpose(1, 2)
    per_channel = 2 * x.shape[0] * x.shape[2]
    size = max(1, _BLOCK_VALUES // per_channel)
    if size >= k.shape[0] or new == 1:
        return _convolve(x, k, new).transpose(1, 2)
    parts: list[Tensor] = []
    for lo in range(0, k.shape[0], size):
        part = checkpoint(
            _convolve,
            x[:, lo : lo + size],
            k[lo : lo + size],
            new,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        assert isinstance(part, Tensor)
        parts.append(part)
    return torch.cat(parts, 1).transpose(1, 2)


def _convolve(x: Tensor, k: Tensor, new: int) -> Tensor:
    """Convolves x (B, D, T) with k (D, taps) and returns the last ``new`` outputs (B, D, new)."""
    total = x.shape[-1]
    k = k[:, :total]
    taps = k.shape[1]
    if new == 1:
        return (x[..., total - taps :] * k.flip(-1)).sum(-1, keepdim=True)
    if new > SHORT_KERNEL * taps:
        return _by_frames(x, k, new)
    n = fft_size(max(total, new + taps - 1))
    spectrum = torch.fft.rfft(x, n=n) * torch.fft.rfft(k, n=n)
    return torch.fft.irfft(spectrum, n=n)[..., total - new : total]


def _by_frames(x: Tensor, k: Tensor, new: int) -> Tensor:
    """As ``_convolve``, through frames of a few kernel lengths that overlap by taps - 1."""
    overlap = k.shape[1] - 1
    n = fft_size(max(4 * k.shape[1], 64))
    hop = n - overlap
    frames = -(-new // hop)
    x = x[..., max(0, x.shape[-1] - new - overlap) :]
    padded = torch.nn.functional.pad(x, (overlap + new - x.shape[-1], frames * hop - new))
    spectrum = torch.fft.rfft(padded.unfold(-1, n, hop), n=n) * torch.fft.rfft(k, n=n).unsqueeze(1)
    y = torch.fft.irfft(spectrum, n=n)[..., overlap:]
    return y.reshape(*y.shape[:2], frames * hop)[..., :new]
