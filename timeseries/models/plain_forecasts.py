"""What the zero-shot forecaster's networks are given in closed form: plain forecasts and scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.timeseries.models._seasons import (
    History,
    Periods,
    copies,
    decompose,
    discounted_lines,
    lag_errors,
)
from longseq.timeseries.models.local_forecasts import BLOCK, Local, local_forecasts

CANDIDATES = 17
_TAIL = 32
_DISCOUNTS = (0.4, 0.7, 0.9, 0.97, 1.0)
_SHOWN = 5
_SCALARS = 16
INPUTS = _SHOWN * BLOCK + 2 * _TAIL + _SCALARS + 2 * len(_DISCOUNTS)


class Plain(NamedTuple):
    """What follows from histories without a parameter.

    Attributes:
        forecasts: the next 64 values by 17 plain rules (N, 64, 17).
        inputs: of a network: five of these forecasts, the last values, scales, lengths and slopes,
            in units of a local scale (N, F).
        scales: local scales to choose from (N, 4).
        floor: the least scale (N,).
        error: what a plain forecast misses inside the history, the unit of losses (N,).
        local: gives what local models say, to a network that asks.
    """

    forecasts: Tensor
    inputs: Tensor
    scales: Tensor
    floor: Tensor
    error: Tensor
    local: Callable[[], Local]


def plain_forecasts(history: History, periods: Periods, dtype: torch.dtype) -> Plain:
    """Returns the plain forecasts of histories, and what else a network is given beside its state.

    Args:
        history: N of them.
        periods: theirs.
        dtype: of what is returned; what is found for all rows of a history has the history's.
    """
    x, mask, count = history
    errors = [
        lag_errors(history, lag)
        for lag in (torch.ones_like(periods.first), periods.first, periods.second)
    ]
    n = mask.sum(1).clamp(min=1)
    variance = (mask * x.square()).sum(1) / n - ((mask * x).sum(1) / n).square()
    spread = variance.clamp(min=1e-8).sqrt()
    floor = 1e-3 * spread + 1e-5
    unit = (torch.minimum(errors[0][:, 0], errors[1][:, 0]) + floor)[:, None]
    adjusted, season = decompose(history, periods.first, BLOCK)
    candidates, shown, slope = _candidates(history, periods, adjusted, season, dtype)
    last = x[:, -1:]
    tail = torch.asinh((F.pad(x, (_TAIL, 0))[:, -_TAIL:] - last) / unit)
    seen = F.pad(mask, (_TAIL, 0))[:, -_TAIL:]
    lengths = torch.stack([count, periods.first, periods.second], 1).to(x.dtype).log() * 0.3
    scalars = [
        *((error / unit + 1e-3).log() for error in errors),
        periods.strength,
        (spread[:, None] / unit).log(),
        lengths,
        (periods.first / count)[:, None],
        mask.mean(1, keepdim=True),
        (mask.sum(1) / count)[:, None],
        torch.asinh(last / unit),
    ]
    relative = [torch.asinh((one - last) / unit) for one in shown]
    slopes = [torch.asinh(slope / unit), torch.asinh(10 * slope / unit)]
    inputs = torch.cat([*relative, tail * seen, seen, *scalars, *slopes], 1)
    scales = torch.stack([errors[0][:, 0], errors[1][:, 0], errors[0][:, 1], spread], 1)
    error = ((errors[0][:, 0] + floor) * (errors[1][:, 0] + floor)).sqrt()
    found = (one.to(dtype) for one in (candidates, inputs, scales, floor, error))

    @cache  # found once, if a network asks
    def local() -> Local:
        own = (one.to(dtype) for one in (adjusted, season, unit))
        return local_forecasts(history.to(dtype), *own)

    return Plain(*found, local)


def _candidates(
    history: History, periods: Periods, adjusted: Tensor, season: Tensor, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Returns the plain forecasts (N, 64, 17), those that a network sees, and the slopes of the
    discounted lines (N, 5), whose sums, of which little is left, are taken in a type."""
    x, _, count = history
    first, second = periods.first, periods.second
    h = torch.arange(1, BLOCK + 1, dtype=x.dtype, device=x.device)
    last = x[:, -1:].expand(-1, BLOCK)
    one, four = copies(history, first, BLOCK, 1), copies(history, first, BLOCK, 4)
    far, far_four = copies(history, second, BLOCK, 1), copies(history, second, BLOCK, 4)
    discounts = torch.tensor(_DISCOUNTS, dtype=dtype, device=x.device)
    lines = discounted_lines(history.to(dtype), adjusted.to(dtype), discounts)
    mean, level, slope = (one.to(x.dtype) for one in lines)
    damped = torch.cumsum(0.9**h, 0)
    flat = [mean[:, k : k + 1] + season for k in (0, 1, 2)]
    line = [
        level[:, k : k + 1] + slope[:, k : k + 1] * (damped if k < 3 else h) + season
        for k in (1, 2, 3)
    ]
    # Theta: a short-sighted level and half the slope of the whole (Assimakopoulos 2000).
    theta = mean[:, 0:1] + 0.5 * slope[:, 4:5] * h + season
    steep = mean[:, 1:2] + slope[:, 4:5] * h + season
    overall = mean[:, 4:5] + season
    # The last season, moved by what it differs from the one before.
    total, p = F.pad(torch.cumsum(x, 1), (1, 0)), first.unsqueeze(1)
    sums = [total.gather(1, (x.shape[1] - k * p).clamp(min=0)) for k in range(3)]
    change = torch.where(count.unsqueeze(1) >= 2 * p, (sums[0] - 2 * sums[1] + sums[2]) / p, 0.0)
    drift = one + change * (torch.floor((h - 1) / p) + 1)
    at = (first - 1).clamp(max=BLOCK - 1).unsqueeze(1)
    now = torch.where((first <= BLOCK).unsqueeze(1), season.gather(1, at), 0.0)
    naive = last + season - now
    found = [last, one, four, far, far_four, *flat, *line, theta, steep, overall, drift, naive]
    found.append(0.5 * (one + far))
    return torch.stack(found, -1), (one, four, far, season, theta), slope
