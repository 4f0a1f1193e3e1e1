"""The zero-shot forecaster: mixers on patches, plain forecasts to choose from, nine quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.timeseries.models._seasons import (
    History,
    Periods,
    copies,
    decompose,
    discounted_lines,
    fill_forward,
    find_periods,
    lag_errors,
)

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BLOCK = 64
MAX_CONTEXT = 2048
_MEDIAN = 4
_TAIL = 32
_DISCOUNTS = (0.4, 0.7, 0.9, 0.97, 1.0)
_CANDIDATES = 17
_SHOWN = 5
_SCALARS = 16
_BASIS = 8


class Scaled(NamedTuple):
    """Quantiles relative to a context.

    Attributes:
        quantiles: of every cutoff (N, 64, 9), in units of ``spread`` around ``level``.
        error: of every cutoff (N,), what a plain forecast misses inside the context: the unit of
            losses.
        level: mean of the first context (N, 1).
        spread: its deviation (N, 1).
    """

    quantiles: list[Tensor]
    error: list[Tensor]
    level: Tensor
    spread: Tensor


class ZeroShot(nn.Module):
    """Quantiles of the next 64 values of any series, of which nothing needs to be known beforehand.

    1. A context of any length, with gaps, is taken relative to its own mean and deviation.
    2. Patches of it are embedded: values, differences from the patch's last value, differences from
       the value a season ago, what was observed; a causal backbone reads them.
    3. From the context follow, in closed form, two periods (autocorrelation) and 17 plain
       forecasts: the last value, copies and means of seasons, discounted levels and lines on the
       deseasonalised series.
    4. A small network sees the backbone's last state, five of these forecasts, the last 32 values
       and how far plain forecasts were off inside the context. It weighs the plain forecasts at
       every step ahead (softmax), adds a correction in units of a local scale, and gives the
       distances between quantiles, which are positive, so that they never cross.

    Args:
        d_model: width D.
        n_layers: number of layers; 0 for no backbone.
        mixer: a mixer's name or a pattern of names.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        patch: rows of a patch.
        hidden: width of the network of step 4.
    """

    steps: Tensor
    discounts: Tensor

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 3,
        mixer: str | list[Any] = "slstm",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        patch: int = 16,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.patch = check_positive("patch", patch)
        self.embed = nn.Linear(4 * patch + 6, d_model)
        self.backbone = (
            Backbone(d_model, n_layers, mixer, mixer_kwargs, mlp_ratio) if n_layers else None
        )
        width = d_model + _SHOWN * BLOCK + 2 * _TAIL + _SCALARS + 2 * len(_DISCOUNTS)
        self.up = nn.Linear(width, hidden)
        self.mid = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, _CANDIDATES * _BASIS)
        self.out = nn.Linear(hidden, BLOCK * len(QUANTILES))
        self.scale = nn.Linear(hidden, 4)
        for layer in (self.gate, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.out.weight.mul_(0.1)
            self.out.bias.zero_()
        # Weights of the plain forecasts are smooth in the logarithm of the step ahead.
        ahead = torch.arange(1, BLOCK + 1).float().log() / math.log(BLOCK)
        basis = torch.stack([torch.cos(math.pi * k * ahead) for k in range(_BASIS)])
        self.register_buffer("steps", basis, persistent=False)
        self.register_buffer("discounts", torch.tensor(_DISCOUNTS), persistent=False)

    def forward(
        self, x: Tensor, known: Tensor, hint: Tensor, cutoffs: Sequence[int] | None = None
    ) -> Scaled:
        """Returns the quantiles after one or more cutoffs.

        Args:
            x: values (N, L), L a multiple of the patch; padded on the left.
            known: where they were observed (N, L), bool.
            hint: period that the calendar suggests, in rows (N,); 0 for none.
            cutoffs: ends of contexts, multiples of the patch in ascending order, of which the first
                sets level and spread; the end of x if None.
        """
        ends = [x.shape[1]] if cutoffs is None else list(cutoffs)
        x = torch.where(known, x, 0.0)
        first = known[:, : ends[0]].to(x.dtype)
        count = first.sum(1, keepdim=True).clamp(min=1)
        level = (x[:, : ends[0]] * first).sum(1, keepdim=True) / count
        centred = (x[:, : ends[0]] - level) * first
        spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
        # A constant context has a spread of rounding: its own size is the unit then.
        spread = torch.where(
            spread > 1e-7 * level.abs() + 1e-30, spread, level.abs().clamp(min=1.0)
        )
        u = ((x - level) / spread).clamp(-1e4, 1e4)
        whole = fill_forward(u, known)
        same = ends[0] == x.shape[1]
        prefix = whole if same else fill_forward(u[:, : ends[0]], known[:, : ends[0]])
        periods = find_periods(prefix, hint)
        unit = lag_errors(prefix, torch.ones_like(periods.first))[:, 0] + 1e-3
        places = [end // self.patch - 1 for end in ends]
        if self.backbone is None:  # the states at the cutoffs are all that is asked for
            z = self._encode(whole, periods.first, unit, places)
        else:
            every = self._encode(whole, periods.first, unit, range(x.shape[1] // self.patch))
            z = self.backbone(every, keep_states=False)[0][:, places]
        quantiles, error = [], []
        for place, end in enumerate(ends):
            began = (whole.count - (x.shape[1] - end)).clamp(min=1)
            history = History(whole.x[:, :end], whole.mask[:, :end], began)
            found = periods if same else find_periods(history, hint)
            q, e = self._head(z[:, place], history, found)
            quantiles.append(q)
            error.append(e)
        return Scaled(quantiles, error, level, spread)

    def _encode(
        self, history: History, period: Tensor, unit: Tensor, which: Sequence[int]
    ) -> Tensor:
        """Returns embedded patches (N, P, D).

        Args:
            history: normalised values.
            period: of the season (N,).
            unit: mean absolute difference of neighbours (N,).
            which: patches (P,), counted from the first.
        """
        x, mask, _ = history
        cut = (len(which), self.patch)
        first = torch.tensor(which, device=x.device).unsqueeze(1) * self.patch
        rows = (first + torch.arange(self.patch, device=x.device)).flatten()
        own = x[:, rows]
        patches, seen = own.unflatten(1, cut), mask[:, rows].unflatten(1, cut)
        last = patches[..., -1:]
        change = torch.asinh((patches - last) / unit[:, None, None])
        before = (rows - period.unsqueeze(1)).clamp(min=0)
        seasonal = torch.asinh((own - x.gather(1, before)) / unit[:, None])
        seasonal = (seasonal * (rows >= period.unsqueeze(1))).unflatten(1, cut)
        wide = (len(x), cut[0])
        scalars = [
            last[..., 0].asinh(),
            unit.log()[:, None].expand(wide),
            seen.mean(-1),
            period.float().log()[:, None].expand(wide) * 0.3,
            change.abs().mean(-1),
            patches.std(-1).clamp(min=1e-4).log(),
        ]
        inputs = [torch.asinh(patches), change, seasonal, seen, torch.stack(scalars, -1)]
        return self.embed(torch.cat(inputs, -1))

    def _candidates(
        self, history: History, periods: Periods
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Returns the plain forecasts (N, 64, 17), those that the network sees, and the slopes of
        the discounted lines (N, 5)."""
        x, _, count = history
        first, second = periods.first, periods.second
        h = torch.arange(1, BLOCK + 1, dtype=x.dtype, device=x.device)
        last = x[:, -1:].expand(-1, BLOCK)
        one, four = copies(history, first, BLOCK, 1), copies(history, first, BLOCK, 4)
        far, far_four = copies(history, second, BLOCK, 1), copies(history, second, BLOCK, 4)
        adjusted, season = decompose(history, first, BLOCK)
        mean, level, slope = discounted_lines(history, adjusted, self.discounts)
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
        change = torch.where(
            count.unsqueeze(1) >= 2 * p, (sums[0] - 2 * sums[1] + sums[2]) / p, 0.0
        )
        drift = one + change * (torch.floor((h - 1) / p) + 1)
        at = (first - 1).clamp(max=BLOCK - 1).unsqueeze(1)
        now = torch.where((first <= BLOCK).unsqueeze(1), season.gather(1, at), 0.0)
        naive = last + season - now
        found = [last, one, four, far, far_four, *flat, *line, theta, steep, overall, drift, naive]
        found.append(0.5 * (one + far))
        return torch.stack(found, -1), (one, four, far, season, theta), slope

    def _head(self, z: Tensor, history: History, periods: Periods) -> tuple[Tensor, Tensor]:
        """Returns the quantiles (N, 64, 9) after a history, and the unit of losses (N,)."""
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
        candidates, shown, slope = self._candidates(history, periods)
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
        a = F.silu(self.up(torch.cat([z, *relative, tail * seen, seen, *scalars, *slopes], 1)))
        a = a + F.silu(self.mid(a))
        gates = self.gate(a).unflatten(1, (_CANDIDATES, _BASIS)) @ self.steps
        base = (gates.transpose(1, 2).softmax(-1) * candidates).sum(-1)
        local = torch.stack([errors[0][:, 0], errors[1][:, 0], errors[0][:, 1], spread], 1)
        scale = ((self.scale(a).softmax(-1) * local).sum(1) + floor)[:, None, None]
        raw = self.out(a).unflatten(1, (BLOCK, len(QUANTILES)))
        # Softplus distances, at the start about those of a normal distribution.
        up = torch.cumsum(F.softplus(raw[..., _MEDIAN + 1 :] - 1.2), -1)
        down = torch.cumsum(F.softplus(raw[..., :_MEDIAN].flip(-1) - 1.2), -1).flip(-1)
        around = torch.cat([-down, raw[..., :1] * 0, up], -1) + raw[..., _MEDIAN : _MEDIAN + 1]
        error = ((errors[0][:, 0] + floor) * (errors[1][:, 0] + floor)).sqrt()
        return base.unsqueeze(-1) + scale * around, error
