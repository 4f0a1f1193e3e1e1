"""Closed-form parts of the zero-shot forecaster: periods, copies of seasons, discounted lines."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-6


class History(NamedTuple):
    """Known values before a cutoff, all of one length.

    Attributes:
        x: values (N, L), gaps filled with the last known value.
        mask: 1 where a value was observed, 0 elsewhere (N, L), as float.
        count: rows from the first observed value on (N,), at least 1.
    """

    x: Tensor
    mask: Tensor
    count: Tensor

    def to(self, dtype: torch.dtype) -> History:
        """Returns it with values in a floating type."""
        return History(self.x.to(dtype), self.mask.to(dtype), self.count)


def fill_forward(x: Tensor, known: Tensor) -> History:
    """Returns the history of values (N, L) of which ``known`` (N, L) were observed.

    Gaps carry the last observed value, the padding before the first one carries that one.
    """
    length = x.shape[1]
    rows = torch.arange(length, device=x.device).expand_as(x)
    last = torch.where(known, rows, -1).cummax(1).values
    some = known.any(1, keepdim=True)
    first = torch.where(some, known.to(torch.int8).argmax(1, keepdim=True), length - 1)
    filled = torch.nan_to_num(x, 0.0, 0.0, 0.0).gather(1, torch.where(last < 0, first, last))
    return History(
        torch.where(some, filled, 0.0), known.to(x.dtype), (length - first[:, 0]).to(x.dtype)
    )


def autocorrelation(history: History) -> Tensor:
    """Returns a score of every lag (N, L): mean autocorrelation of the detrended and of the
    differenced series."""
    x, mask, _ = history
    length = x.shape[1]
    t = torch.linspace(-1.0, 1.0, length, dtype=x.dtype, device=x.device)
    n = mask.sum(1, keepdim=True).clamp(min=1)
    mt, mx = (mask * t).sum(1, keepdim=True) / n, (mask * x).sum(1, keepdim=True) / n
    tc = (t - mt) * mask
    slope = (tc * (x - mx)).sum(1, keepdim=True) / tc.square().sum(1, keepdim=True).clamp(min=_EPS)
    level = ((x - mx) - slope * (t - mt)) * mask
    pair = mask[:, 1:] * mask[:, :-1]
    step = (x[:, 1:] - x[:, :-1]) * pair
    step = step - step.sum(1, keepdim=True) / pair.sum(1, keepdim=True).clamp(min=1) * pair
    # Single outliers would hide a season.
    bound = 4 * step.square().mean(1, keepdim=True).sqrt()
    step = F.pad(torch.maximum(torch.minimum(step, bound), -bound), (1, 0))
    # Pairs at every lag: without holes their number is known.
    fewer = history.count.unsqueeze(1) - torch.arange(length, device=x.device)
    counts = torch.stack([fewer, fewer - 1])
    holes = n[:, 0] < history.count
    if holes.any():
        counts[:, holes] = _correlate(torch.stack([mask, F.pad(pair, (1, 0))])[:, holes])
    found = _correlate(torch.stack([level, step])) / counts.clamp(min=1)
    return 0.5 * (found / found[..., :1].clamp(min=_EPS)).sum(0)


def _correlate(x: Tensor) -> Tensor:
    """Returns the sum of x_t · x_{t-lag} at every lag (…, L)."""
    length = x.shape[-1]
    f = torch.fft.rfft(x, 2 * length)
    return torch.fft.irfft(f.real.square() + f.imag.square(), 2 * length)[..., :length]


class Periods(NamedTuple):
    """Two periods and how sure they are.

    Attributes:
        first: rows (N,), 1 for none.
        second: rows (N,), longer than the first where there is one, else the first.
        strength: autocorrelation at both (N, 2).
    """

    first: Tensor
    second: Tensor
    strength: Tensor


def find_periods(history: History, hint: Tensor) -> Periods:
    """Returns the periods of histories.

    Args:
        history: N of them.
        hint: period that the calendar suggests, in rows (N,); 0 for none.
    """
    x, _, count = history
    length = x.shape[1]
    score = autocorrelation(history)
    lag = torch.arange(length, device=x.device)
    peak = torch.zeros_like(score, dtype=torch.bool)
    if length > 4:
        peak[:, 2:-1] = (score[:, 2:-1] >= score[:, 1:-2]) & (score[:, 2:-1] >= score[:, 3:])
    usable = (lag >= 2) & (lag <= (count / 2).unsqueeze(1))
    noise = 1.0 / (count.unsqueeze(1) - lag).clamp(min=1).sqrt()
    # A smooth series resembles itself at short lags too: what counts is the rise from the trough.
    rise = score - score.cummin(1).values
    adjusted = torch.minimum(score, 0.5 * (score + rise) - 0.1)
    adjusted = adjusted - 0.5 * noise - 0.012 * lag.clamp(min=1).log2()
    hinted = (lag == hint.unsqueeze(1)) & (hint >= 2).unsqueeze(1) & (lag < count.unsqueeze(1) - 1)
    ranked = torch.where((peak & usable) | hinted, adjusted, -9.0) + 0.2 * hinted
    best, first = ranked.max(1)
    none = best < 0.05
    first = torch.where(none, 1, first)
    longer = torch.where(lag > 1.5 * first.unsqueeze(1), ranked, -9.0)
    value, second = longer.max(1)
    second = torch.where((value < 0.05) | none, first, second)
    both = torch.stack([first, second], 1)
    strength = torch.where(both > 1, score.gather(1, both), 0.0)
    return Periods(first, second, strength)


def lag_errors(history: History, lags: Tensor) -> Tensor:
    """Returns mean |x_t - x_{t-lag}| over observed pairs (N, 2): of all, and of the last third.

    Args:
        history: N of them.
        lags: rows (N,), at least 1.
    """
    x, mask, count = history
    length = x.shape[1]
    rows = torch.arange(length, device=x.device).unsqueeze(0)
    before = (rows - lags.unsqueeze(1)).clamp(min=0)
    ok = mask * mask.gather(1, before) * (rows >= lags.unsqueeze(1))
    error = (x - x.gather(1, before)).abs() * ok
    late = ok * (rows >= length - (count / 3).clamp(min=3).unsqueeze(1))
    whole = error.sum(1) / ok.sum(1).clamp(min=1)
    recent = (error * late).sum(1) / late.sum(1).clamp(min=1)
    return torch.stack([whole, recent], 1)


def copies(history: History, period: Tensor, horizon: int, seasons: int) -> Tensor:
    """Returns the mean of the last ``seasons`` values at the same phase (N, h)."""
    x, _, count = history
    length = x.shape[1]
    ahead = torch.arange(horizon, device=x.device) % period.unsqueeze(1)
    total, weight = torch.zeros_like(ahead, dtype=x.dtype), torch.zeros_like(ahead, dtype=x.dtype)
    for k in range(1, seasons + 1):
        at = length - k * period.unsqueeze(1) + ahead
        ok = ((at >= length - count.unsqueeze(1)) | (k == 1)).to(x.dtype)
        total = total + ok * x.gather(1, at.clamp(min=0).to(torch.int64))
        weight = weight + ok
    return total / weight


def decompose(history: History, period: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Takes a season off: discounted means by phase of what a centred moving average leaves.

    Args:
        history: N of them.
        period: rows (N,); a period of 1 has no season.
        horizon: h.

    Returns:
        Values less the season (N, L), and the season of the horizon (N, h).
    """
    x, mask, count = history
    length = x.shape[1]
    rows = torch.arange(length, device=x.device).unsqueeze(0)
    p = period.unsqueeze(1)
    start = (length - count).to(torch.int64).unsqueeze(1)
    total = F.pad(torch.cumsum(x, 1), (1, 0))
    # A window of one period around t, moved inside the history at its ends, where the trend is
    # extended by the slope of the moving average.
    top = (length - p).clamp(min=0)
    low = torch.minimum(torch.maximum(rows - p // 2, torch.minimum(start, top)), top)

    def mean(at: Tensor) -> Tensor:
        return (total.gather(1, (at + p).clamp(max=length)) - total.gather(1, at)) / p

    ahead = torch.minimum(low + p, top)
    before = torch.maximum(ahead - p, torch.minimum(start, top))
    slope = (mean(ahead) - mean(before)) / (ahead - before).clamp(min=1)
    trend = mean(low) + slope * (rows - (low + (p - 1) / 2))
    phase = (rows - length) % p
    age = torch.div(length - 1 - rows, p, rounding_mode="floor").clamp(max=40)
    weight = mask * (rows >= start) * 0.75 ** age.to(x.dtype)
    size = int(period.max())
    sums = torch.zeros(x.shape[0], size, dtype=x.dtype, device=x.device)
    weights = sums.clone()
    sums.scatter_add_(1, phase, (x - trend) * weight)
    weights.scatter_add_(1, phase, weight)
    inside = (torch.arange(size, device=x.device) < p) & (p > 1)
    profile = sums / (weights + 0.3) * inside
    # One after the other, so that neighbours with longer periods do not change the rounding.
    profile = (profile - profile.cumsum(1)[:, -1:] / p) * inside
    coming = torch.arange(horizon, device=x.device) % p
    return x - profile.gather(1, phase), profile.gather(1, coming)


def discounted_lines(
    history: History, x: Tensor, discounts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the discounted mean, and the level at the last row and the slope of the discounted
    line, (N, K) each.

    Args:
        history: N of them.
        x: values to fit (N, L).
        discounts: weight of a row over its successor's (K,).
    """
    length = x.shape[1]
    back = torch.arange(length - 1, -1, -1, dtype=x.dtype, device=x.device)
    powers = discounts.unsqueeze(1) ** back
    known = history.mask
    s0, s1, s2 = known @ powers.T, known @ (powers * back).T, known @ (powers * back.square()).T
    y0, y1 = (known * x) @ powers.T, (known * x) @ (powers * back).T
    mean = y0 / s0.clamp(min=_EPS)
    spread = s0 * s2 - s1.square()
    slope = torch.where(
        spread > 1e-3 * s0.square(), (s0 * y1 - s1 * y0) / spread.clamp(min=_EPS), 0.0
    )
    # ``back`` counts backwards: the slope in time is its negative.
    return mean, mean - slope * s1 / s0.clamp(min=_EPS), -slope
