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
from longseq.core.errors import ConfigError
from longseq.timeseries.models._seasons import History, fill_forward, find_periods, lag_errors
from longseq.timeseries.models.local_forecasts import LOCAL_INPUTS, LOCALS, WIDTHS
from longseq.timeseries.models.plain_forecasts import (
    BLOCK,
    CANDIDATES,
    INPUTS,
    Plain,
    plain_forecasts,
)

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MAX_CONTEXT = 2048
_MEDIAN = 4
_BASIS = 8
# Rows of a season up to which one counts as none in the shares of networks: a year's quarters.
_FEW = 4


class Scaled(NamedTuple):
    """Quantiles relative to a context.

    Attributes:
        quantiles: of every cutoff (N, 64, 9), in units of ``spread`` around ``level``.
        error: of every cutoff (N,), what a plain forecast misses inside the context.
        expected: of every cutoff (N, 64), the least width that a local model expects; empty where
            none is asked.
        level: mean of the first context (N, 1).
        spread: its deviation (N, 1).
    """

    quantiles: list[Tensor]
    error: list[Tensor]
    expected: list[Tensor]
    level: Tensor
    spread: Tensor


class _Contexts(NamedTuple):
    """Contexts as networks read them.

    Attributes:
        ends: the cutoffs, in rows.
        level: mean of the first context (N, 1).
        spread: its deviation (N, 1).
        whole: the values around that level, in units of that deviation.
        period: of the first context (N,).
        unit: mean absolute difference of its neighbours (N,).
        plain: what follows in closed form from the history before every cutoff.
    """

    ends: list[int]
    level: Tensor
    spread: Tensor
    whole: History
    period: Tensor
    unit: Tensor
    plain: list[Plain]


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
        reads: last rows before a cutoff that the backbone reads; more are read only by what follows
            in closed form.
        local: the network of step 4 sees and weighs six local models too (exponential smoothing and
            autoregressions, fitted to the last 96 or 192 values).
    """

    steps: Tensor

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 3,
        mixer: str | list[Any] = "slstm",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        patch: int = 16,
        hidden: int = 256,
        reads: int = MAX_CONTEXT,
        local: bool = False,
    ) -> None:
        super().__init__()
        self.patch, self.reads = check_positive("patch", patch), check_positive("reads", reads)
        self.local = local
        inputs, candidates, scales = INPUTS, CANDIDATES, 4
        if local:
            inputs, candidates = inputs + LOCAL_INPUTS, candidates + LOCALS
            scales += WIDTHS
        self.embed = nn.Linear(4 * patch + 6, d_model)
        self.backbone = (
            Backbone(d_model, n_layers, mixer, mixer_kwargs, mlp_ratio) if n_layers else None
        )
        self.up = nn.Linear(d_model + inputs, hidden)
        self.mid = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, candidates * _BASIS)
        self.out = nn.Linear(hidden, BLOCK * len(QUANTILES))
        self.scale = nn.Linear(hidden, scales)
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

    def forward(
        self, x: Tensor, known: Tensor, hint: Tensor, cutoffs: Sequence[int] | None = None
    ) -> Scaled:
        """Returns the quantiles after one or more cutoffs.

        Args:
            x: values (N, L), L a multiple of the patch; padded on the left. Periods and plain
                forecasts are found in their type, all else in that of the weights.
            known: where they were observed (N, L), bool.
            hint: period that the calendar suggests, in rows (N,); 0 for none.
            cutoffs: ends of contexts, multiples of the patch in ascending order, of which the first
                sets level and spread; the end of x if None.
        """
        contexts = _prepare(x, known, hint, cutoffs, self.embed.weight.dtype)
        return _scaled(self.read(contexts), contexts, self.local)

    def read(self, contexts: _Contexts) -> list[Tensor]:
        """Returns the quantiles after every cutoff (N, 64, 9).

        Args:
            contexts: normalised, with what follows from them in closed form.
        """
        states = self._states(contexts, [end // self.patch - 1 for end in contexts.ends])
        return [self._head(z, plain) for z, plain in zip(states, contexts.plain)]

    def _states(self, contexts: _Contexts, places: Sequence[int]) -> list[Tensor]:
        """Returns what is known after some patches (N, D).

        Args:
            contexts: N of them.
            places: the patches, counted from the first, in ascending order.
        """
        if self.backbone is None:  # the embedded patches are all that is asked for
            return list(self._encode(contexts, places).unbind(1))
        width, stop = -(-self.reads // self.patch), places[-1] + 1
        if width >= stop:
            every = self.backbone(self._encode(contexts, range(stop)), keep_states=False)[0]
            return [every[:, at] for at in places]
        begins = [max(0, at + 1 - width) for at in places]
        every = self._encode(contexts, range(begins[0], stop))
        found: list[Tensor] = []
        # All places with as many patches before them go through the backbone together.
        for count in sorted({at - begin for at, begin in zip(places, begins)}):
            starts = [begin - begins[0] for at, begin in zip(places, begins) if at - begin == count]
            parts = torch.stack([every[:, one : one + count + 1] for one in starts], 1)
            z = self.backbone(parts.flatten(0, 1), keep_states=False)[0][:, -1]
            found += z.unflatten(0, (-1, len(starts))).unbind(1)
        return found

    def _encode(self, contexts: _Contexts, which: Sequence[int]) -> Tensor:
        """Returns embedded patches (N, P, D).

        Args:
            contexts: N of them.
            which: patches (P,), counted from the first.
        """
        (x, mask, _), period, unit = contexts.whole, contexts.period, contexts.unit
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

    def _head(self, z: Tensor, plain: Plain) -> Tensor:
        """Returns the quantiles (N, 64, 9) after states z (N, D)."""
        inputs, forecasts, scales = plain.inputs, plain.forecasts, plain.scales.unsqueeze(1)
        if self.local:
            local = plain.local()
            inputs = torch.cat([inputs, local.inputs], 1)
            forecasts = torch.cat([forecasts, local.forecasts], 2)
            scales = torch.cat([scales.expand(-1, BLOCK, -1), local.widths], 2)
        a = F.silu(self.up(torch.cat([z, inputs], 1)))
        a = a + F.silu(self.mid(a))
        gates = self.gate(a).unflatten(1, (-1, _BASIS)) @ self.steps
        base = (gates.transpose(1, 2).softmax(-1) * forecasts).sum(-1)
        scale = (self.scale(a).softmax(-1).unsqueeze(1) * scales).sum(2) + plain.floor.unsqueeze(1)
        raw = self.out(a).unflatten(1, (BLOCK, len(QUANTILES)))
        # Softplus distances, at the start about those of a normal distribution.
        up = torch.cumsum(F.softplus(raw[..., _MEDIAN + 1 :] - 1.2), -1)
        down = torch.cumsum(F.softplus(raw[..., :_MEDIAN].flip(-1) - 1.2), -1).flip(-1)
        around = torch.cat([-down, raw[..., :1] * 0, up], -1) + raw[..., _MEDIAN : _MEDIAN + 1]
        return base.unsqueeze(-1) + scale.unsqueeze(-1) * around


class MeanOfNetworks(nn.Module):
    """The weighted mean of networks' quantiles. What follows in closed form is found once for all.

    Args:
        networks: with patches of one width.
        shares: of every network in the mean: where the season found has at most four rows or there
            is none, and where it has more.
    """

    shares: Tensor

    def __init__(self, networks: Sequence[ZeroShot], shares: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.patch = networks[0].patch
        self.register_buffer("shares", torch.tensor(shares), persistent=False)
        for one in networks:
            if one.patch != self.patch:
                raise ConfigError(f"patches are of {self.patch} and of {one.patch} rows")

    def forward(
        self, x: Tensor, known: Tensor, hint: Tensor, cutoffs: Sequence[int] | None = None
    ) -> Scaled:
        """Returns the quantiles after one or more cutoffs, with the arguments of ``ZeroShot``."""
        contexts = _prepare(x, known, hint, cutoffs, self.shares.dtype)
        # A share a network and a series; what has none of any series is not asked.
        shares = self.shares[:, (contexts.period > _FEW).long(), None, None]
        found = [
            [share * quantiles for quantiles in one.read(contexts)]  # type: ignore[operator]
            for share, one in zip(shares, self.networks)
            if share.any()
        ]
        mean = [torch.stack(every).sum(0) for every in zip(*found)]
        return _scaled(mean, contexts, any(one.local for one in self.networks))


def _prepare(
    x: Tensor,
    known: Tensor,
    hint: Tensor,
    cutoffs: Sequence[int] | None,
    dtype: torch.dtype,
) -> _Contexts:
    """Returns what a network reads of the arguments of ``ZeroShot.forward``, in a floating type."""
    ends = [x.shape[1]] if cutoffs is None else list(cutoffs)
    x = torch.where(known, x, 0.0)
    first = known[:, : ends[0]].to(x.dtype)
    count = first.sum(1, keepdim=True).clamp(min=1)
    level = (x[:, : ends[0]] * first).sum(1, keepdim=True) / count
    centred = (x[:, : ends[0]] - level) * first
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
    # A constant context has a spread of rounding: its own size is the unit then.
    spread = torch.where(spread > 1e-7 * level.abs() + 1e-30, spread, level.abs().clamp(min=1.0))
    u = ((x - level) / spread).clamp(-1e4, 1e4)
    whole = fill_forward(u, known)
    same = ends[0] == x.shape[1]
    prefix = whole if same else fill_forward(u[:, : ends[0]], known[:, : ends[0]])
    periods = find_periods(prefix, hint)
    unit = lag_errors(prefix, torch.ones_like(periods.first))[:, 0] + 1e-3
    plain = []
    for end in ends:
        began = (whole.count - (x.shape[1] - end)).clamp(min=1)
        history = History(whole.x[:, :end], whole.mask[:, :end], began)
        found = periods if same else find_periods(history, hint)
        plain.append(plain_forecasts(history, found, dtype))
    scales = (one.to(dtype) for one in (level, spread))
    return _Contexts(ends, *scales, whole.to(dtype), periods.first, unit.to(dtype), plain)


def _scaled(quantiles: list[Tensor], contexts: _Contexts, local: bool) -> Scaled:
    error = [one.error for one in contexts.plain]
    expected = [one.local().widths.amin(2) for one in contexts.plain if local]
    return Scaled(quantiles, error, expected, contexts.level, contexts.spread)
