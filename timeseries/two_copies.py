"""The mean of a network's forecasts of two copies of series, through which gradients go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longseq.timeseries.logarithms import LOG_RATIO
from longseq.timeseries.models.zero_shot import Scaled


def mean_of_copies(
    model: nn.Module,
    rows: Tensor,
    known: Tensor,
    zero: Tensor,
    hint: Tensor,
    cutoffs: Sequence[int] | None = None,
) -> Scaled:
    """Returns the mean of the quantiles of both copies that ``zero_shot.Quantiles`` forecasts: of
    logarithms where all values are positive, with the suggested season, and upside down.

    Args:
        model: a ``models.zero_shot.ZeroShot``, or a mean of several.
        rows: series (N, L), L a multiple of the patch, about 1 in size.
        known: where they were observed (N, L), bool.
        zero: where the series' own 0 lies in the units of ``rows`` (N, 1).
        hint: rows of a season that the calendar suggests (N,), 0 for none.
        cutoffs: ends of contexts, multiples of the patch; the end of rows if None.
    """
    # Relative to the distance of 0, so that a level of 1e9 leaves something in float32.
    mean = (-zero).clamp(min=1e-30)
    values = rows / mean + 1
    low = values.masked_fill(~known, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(~known, -torch.inf).amax(1, keepdim=True)
    positive = (zero < 0) & (low > 0) & (high <= LOG_RATIO * low)
    logs = torch.where(known & positive, rows / mean, 0.0).log1p()
    both = torch.cat([torch.where(positive, logs, rows), -rows])
    out = model(both, torch.cat([known, known]), torch.cat([hint, torch.zeros_like(hint)]), cutoffs)
    low, high = (torch.where(positive, one, 1.0).unsqueeze(-1) for one in (low, high))
    least, most = low.log(), high.log()  # as of the packaged one's forecasts
    reach = (most - least).clamp(min=1.0)
    positive, mean = positive.unsqueeze(-1), mean.unsqueeze(-1)
    level, spread = -out.level.chunk(2)[1], out.spread.chunk(2)[1]
    found = []
    for quantiles in out.quantiles:
        scaled = quantiles * out.spread.unsqueeze(-1) + out.level.unsqueeze(-1)
        one, turned = scaled.chunk(2)
        grown = torch.where(positive, one, 0.0).clamp(least - reach, most + reach)
        one = torch.where(positive, mean * grown.expm1(), one)
        found.append(((one - turned.flip(-1)) / 2 - level.unsqueeze(-1)) / spread.unsqueeze(-1))
    error, expected = ([one.chunk(2)[1] for one in part] for part in (out.error, out.expected))
    return Scaled(found, error, expected, level, spread)
