"""Causal long convolution by real FFTs: carried history, packed segments, and the direct sum."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longseq.core.errors import ArgumentError
from longseq.core.ops._long_conv import long_conv
from longseq.core.ops.backends import cpu_reason

_BLOCK_VALUES = 1 << 26  # values of one padded spectrum above which channels are processed in blocks
_SHORT_KERNEL = 8  # a sequence this many times longer than the kernel is cut into overlapping frames
_SMALLEST_BUCKET = 16  # packed segments shorter than this are padded to it


@lru_cache(maxsize=4096)
def fft_size(n: int) -> int:
    """Returns the smallest even 2^a·3^b·5^c that is at least ``n``: sizes at which a real FFT is fast.

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


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """Returns the dtype in which a convolution is computed: float64 if any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _check(u: Tensor, k: Tensor, skip: Tensor | None, history: Tensor | None, ids: Tensor | None) -> None:
    if u.ndim != 3 or u.shape[1] < 1:
        raise ArgumentError(f"u must be (B, L, D) with L of at least 1, got {tuple(u.shape)}")
    batch, length, width = u.shape
    if k.ndim != 2 or k.shape[0] != width or k.shape[1] < 1:
        raise ArgumentError(f"k must be ({width}, taps), got {tuple(k.shape)}")
    if skip is not None and skip.shape != (width,):
        raise ArgumentError(f"skip must be ({width},), got {tuple(skip.shape)}")
    if history is not None and (history.ndim != 3 or (history.shape[0], history.shape[2]) != (batch, width)):
        raise ArgumentError(f"history must be ({batch}, H, {width}), got {tuple(history.shape)}")
    if ids is not None and ids.shape != (batch, length):
        raise ArgumentError(f"segment_ids must be ({batch}, {length}), got {tuple(ids.shape)}")


def fft_conv(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    history: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Causal convolution ``y[t] = Σ_j k[j]·u[t-j] + skip·u[t]`` in O((H + L) log(H + L)).

    The history is joined to the input and only the outputs of the new positions are kept (overlap-save), so
    that the FFT may wrap around into what is thrown away: its size is max(H + L, L + taps - 1). A sequence
    much longer than the kernel is cut into overlapping frames, O(L log taps). Packed segments are convolved
    apart, in groups padded to the next power of two. Computed in float32, or float64 if u or k is; on a CPU
    by compiled kernels that keep nothing but the input and the kernel for the backward, elsewhere by
    ``torch.fft``.

    Args:
        u: input (B, L, D), L ≥ 1.
        k: kernel (D, taps), any number of taps.
        skip: weight (D,) of a direct connection.
        history: inputs (B, H, D) before position 0, oldest first, any H ≥ 0; zeros stand for nothing.
        segment_ids: integers (B, L); a change of id ends the reach of what came before. Position 0
            continues the history.

    Returns:
        (B, L, D) in u's dtype.

    Raises:
        ArgumentError: for shapes that do not fit.
    """
    _check(u, k, skip, history, segment_ids)
    dtype = work_dtype(u, k)
    x, taps = u, k.to(dtype)
    if history is not None:
        reach = min(history.shape[1], taps.shape[1] - 1)  # older inputs are out of the kernel's reach
        x = torch.cat([history[:, history.shape[1] - reach :].to(u.dtype), u], 1) if reach else u
    direct = None if skip is None else skip.to(dtype)
    if segment_ids is None:
        return _convolve_rows(x, taps, direct, u.shape[1]).to(u.dtype)
    y = _by_segments(x, taps, segment_ids)
    return (y if direct is None else y + direct * u).to(u.dtype)


def _convolve_rows(x: Tensor, k: Tensor, skip: Tensor | None, new: int) -> Tensor:
    """Convolves x (B, T, D) with k (D, taps) and returns the last ``new`` outputs (B, new, D)."""
    if new > 1 and cpu_reason(x, k) is None:
        y: Tensor = long_conv(x, k, skip, new)
        return y
    x = x.to(k.dtype)
    y = _by_blocks(x, k, new)
    return y if skip is None else y + skip * x[:, -new:]


def _by_blocks(x: Tensor, k: Tensor, new: int) -> Tensor:
    """Convolves x (B, T, D) with k (D, taps) and returns the last ``new`` outputs (B, new, D).

    Where the spectra would be large, channels go in blocks whose spectra are computed again in the backward
    pass instead of being kept.
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
    if new > _SHORT_KERNEL * taps:
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


def _by_segments(x: Tensor, k: Tensor, segment_ids: Tensor) -> Tensor:
    """Convolves each packed segment of x (B, H + L, D) alone; the first of a row owns the H before it."""
    batch, new = segment_ids.shape
    before = x.shape[1] - new
    rows, starts, lengths = segment_table(segment_ids)
    first = starts == 0
    lengths = torch.where(first, lengths + before, lengths)
    starts = torch.where(first, starts, starts + before)
    exponent = torch.log2(lengths.clamp(min=_SMALLEST_BUCKET).double()).ceil().long()
    flat = x.reshape(-1, x.shape[2])
    outputs: list[Tensor] = []
    places: list[Tensor] = []
    for e in exponent.unique().tolist():
        chosen = exponent == e
        longest = int(lengths[chosen].max())
        offset = torch.arange(longest, device=x.device)
        valid = offset < lengths[chosen].unsqueeze(1)
        place = (rows[chosen] * x.shape[1] + starts[chosen]).unsqueeze(1) + offset
        piece = flat[place.clamp(max=flat.shape[0] - 1)]
        piece = torch.where(valid.unsqueeze(-1), piece, 0.0)
        outputs.append(_convolve_rows(piece, k, None, longest)[valid])
        places.append(place[valid])
    y = torch.cat(outputs)[torch.cat(places).argsort()]  # the segments tile the pack: back to where they lay
    return y.reshape(batch, before + new, -1)[:, before:]


def segment_table(segment_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the row, start and length of every packed segment, in order: three integer tensors (S,).

    Args:
        segment_ids: integers (B, L); a segment ends where the id changes.
    """
    batch, length = segment_ids.shape
    begins = torch.ones(batch, length, dtype=torch.bool, device=segment_ids.device)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    flat = begins.flatten().nonzero().squeeze(1)
    ends = torch.cat([flat[1:], flat.new_tensor([batch * length])])
    return flat // length, flat % length, ends - flat


def carry_history(
    u: Tensor, history: Tensor | None, limit: int, segment_ids: Tensor | None = None, fixed: bool = False
) -> Tensor:
    """Returns the inputs that later positions of the same sequence still need.

    Args:
        u: input (B, L, D).
        history: inputs (B, H, D) before it, or None.
        limit: how many to keep at most.
        segment_ids: integers (B, L); what lies before a row's last segment becomes zero, and is dropped where
            it is so in every row.
        fixed: pad with zeros on the left to exactly ``limit``.

    Returns:
        (B, H', D), H' ≤ limit, oldest first.
    """
    x = u if history is None or not history.shape[1] else torch.cat([history.to(u.dtype), u], 1)
    total = x.shape[1]
    keep = min(total, limit)
    if segment_ids is not None:
        changed = segment_ids[:, 1:] != segment_ids[:, :-1]
        position = torch.arange(1, u.shape[1], device=u.device) + (total - u.shape[1])
        begin = torch.nn.functional.pad(changed * position, (1, 0)).amax(1)
        x = torch.where((torch.arange(total, device=u.device) >= begin.unsqueeze(1)).unsqueeze(-1), x, 0.0)
        keep = min(keep, total - int(begin.min()))
    x = x[:, total - keep :]
    return torch.nn.functional.pad(x, (0, 0, limit - keep, 0)) if fixed else x


def fft_conv_reference(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    history: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """The direct sum that ``fft_conv`` equals, one tap at a time, O((H + L)·L); same arguments and result."""
    _check(u, k, skip, history, segment_ids)
    dtype = work_dtype(u, k)
    batch, length, _ = u.shape
    before = 0 if history is None else history.shape[1]
    x = u if history is None else torch.cat([history.to(u.dtype), u], 1)
    x = x.to(dtype)
    ids = u.new_zeros(batch, length, dtype=torch.long) if segment_ids is None else segment_ids
    rank = torch.zeros(batch, before + length, dtype=torch.long, device=u.device)
    rank[:, before + 1 :] = (ids[:, 1:] != ids[:, :-1]).cumsum(1)
    y = torch.zeros(u.shape, dtype=dtype, device=u.device)
    for j in range(min(k.shape[1], before + length)):
        shifted = torch.nn.functional.pad(x, (0, 0, j, 0))[:, before : before + length]
        theirs = torch.nn.functional.pad(rank, (j, 0), value=-1)[:, before : before + length]
        seen = (theirs == rank[:, before:]).unsqueeze(-1)
        y = y + torch.where(seen, shifted, 0.0) * k[:, j].to(dtype)
    if skip is not None:
        y = y + skip.to(dtype) * u.to(dtype)
    return y.to(u.dtype)
