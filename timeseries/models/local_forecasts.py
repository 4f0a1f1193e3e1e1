"""What local models say of many histories at once: exponential smoothing and autoregressions."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.timeseries.models._seasons import History

BLOCK = 64
LOCALS = 6
WIDTHS = 3
_ROWS, _LONGER = 96, 192  # last rows that are smoothed, and that autoregressions are fitted to
# Smoothing constants of models with one level (and a line), and those with a damped slope.
_FLAT = (0.05, 0.12, 0.25, 0.4, 0.6, 0.8, 0.99)
_DAMPED = tuple((a, r * a, p) for a in (0.3, 0.65, 0.99) for r in (0.05, 0.3) for p in (0.85, 0.97))
_ORDER = 12
# Models are weighed as if by at most so many errors: rounding must not decide between them.
_COUNTED = 60.0
_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
_FEW_STEPS = (1, 2, 4, 8, 12, 18, 32, 64)
_SHOWN = 5
_REFLECTIONS = 3
LOCAL_INPUTS = _SHOWN * len(_STEPS) + WIDTHS * len(_FEW_STEPS) + LOCALS + 2 + 2 * _REFLECTIONS
_WIDEST = 30.0


class Local(NamedTuple):
    """What local models say.

    Attributes:
        forecasts: the next 64 values by six models (N, 64, 6).
        inputs: of a network, in units of a local scale (N, F).
        widths: standard deviations of the errors of three of them by step ahead (N, 64, 3).
    """

    forecasts: Tensor
    inputs: Tensor
    widths: Tensor


class Smoothed(NamedTuple):
    """Linear innovation models of every history, each with its own constants (N, K).

    Attributes:
        level: after the last row.
        slope: after the last row.
        squares: mean squared one-step error.
    """

    level: Tensor
    slope: Tensor
    squares: Tensor


class _Bank(NamedTuple):
    """Tables of K models, for M rows.

    Attributes:
        toeplitz: from values to one-step forecasts, with a first state of 0 (M, K · M).
        first: what a first level of 1 adds to the forecast of every row (K, M).
        second: what a first slope of 1 adds (K, M).
        gains: from values to the last level and slope (M, 2 · K).
        powers: from the first state to that after n rows (M + 1, K, 2, 2).
    """

    toeplitz: Tensor
    first: Tensor
    second: Tensor
    gains: Tensor
    powers: Tensor


def constants() -> Tensor:
    """Returns α, β, φ of the models (K, 3): those with a flat level or a line, then damped ones."""
    flat = [(a, 0.0, 1.0) for a in _FLAT]
    return torch.tensor([*flat, *_DAMPED], dtype=torch.float64)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # of use in training too
def _bank(rows: int, dtype: torch.dtype, device: torch.device) -> _Bank:
    """The state (l, b) follows l_t = l_{t-1} + φ b_{t-1} + α e_t, b_t = φ b_{t-1} + β e_t, and
    ŷ_t = l_{t-1} + φ b_{t-1}: (l, b)_t = D (l, b)_{t-1} + (α, β) y_t."""
    alpha, beta, phi = constants().unbind(1)
    ahead = torch.stack([torch.ones_like(phi), phi], 1)
    gain = torch.stack([alpha, beta], 1)
    move = torch.stack([ahead, torch.stack([torch.zeros_like(phi), phi], 1)], 1)
    step = move - gain[:, :, None] * ahead[:, None, :]
    powers = [torch.eye(2, dtype=torch.float64).expand_as(step)]
    for _ in range(rows):
        powers.append(step @ powers[-1])
    every = torch.stack(powers)
    state = torch.einsum("tkij,kj->tki", every[:-1], gain)  # of a value t rows ago
    kernel = torch.einsum("tki,ki->kt", state, ahead)
    begin = torch.einsum("ki,tkij->ktj", ahead, every[:-1])
    lag = torch.arange(rows) - torch.arange(rows)[:, None] - 1
    table = torch.where(lag >= 0, kernel[:, lag.clamp(min=0)], 0.0).transpose(0, 1)
    found = (
        table.reshape(rows, -1),
        begin[..., 0],
        begin[..., 1],
        state.flip(0).transpose(1, 2).reshape(rows, -1),
        every,
    )
    return _Bank(*(one.to(device, dtype).contiguous() for one in found))


def smooth(y: Tensor, mask: Tensor, count: Tensor) -> Smoothed:
    """Fits the first states by least squares of one-step errors, for every constant of a grid.

    The models are, K in all: a level alone; a level and half the slope of the line of least squares
    (Theta: Assimakopoulos and Nikolopoulos 2000, as Hyndman and Billah 2003); a level and a slope
    between none and that line's; a level and a damped slope that both move.

    Args:
        y: values (N, M), gaps filled, the first one about 0: sums of squares are not centred. Only
            the last ``count`` belong to the history.
        mask: 1 where an error counts (N, M).
        count: rows (N,), at least 1 and at most M.
    """
    rows, kinds = y.shape[1], len(_FLAT)
    bank = _bank(rows, y.dtype, y.device)
    n = count.to(torch.int64)
    t = torch.arange(rows, device=y.device)
    at = (t + (rows - n).unsqueeze(1)).clamp(max=rows - 1)
    inside = (t < n.unsqueeze(1)).to(y.dtype)
    own, m = y.gather(1, at) * inside, mask.gather(1, at) * inside  # all begin at row 0
    f1, f2 = bank.first, bank.second
    # In place, as fresh pages cost more than arithmetic.
    rest = (own @ bank.toeplitz).unflatten(1, (-1, rows))
    rest.neg_().add_(own.unsqueeze(1)).mul_(m.unsqueeze(1))
    r1, r2, rr = (rest * f1).sum(2), (rest * f2).sum(2), rest.square().sum(2)
    s11, s12, s22 = m @ (f1 * f1).T, m @ (f1 * f2).T, m @ (f2 * f2).T
    some = m.sum(1, keepdim=True).clamp(min=1)
    mt, my = (m @ t.to(y.dtype)).unsqueeze(1) / some, (m * own).sum(1, keepdim=True) / some
    centred = (t - mt) * m
    line = (centred * (own - my)).sum(1, keepdim=True)
    line = line / centred.square().sum(1, keepdim=True).clamp(min=1e-6)
    # A slope needs a few values. The ridge of a thousandth keeps short ones from being singular.
    free = (s11 * r2 - s12 * r1) / (s11 * s22 * 1.001 - s12 * s12).clamp(min=1e-9) * (some >= 4)
    low, high = line.clamp(max=0), line.clamp(min=0)
    drift = torch.minimum(torch.maximum(free[:, :kinds], low), high)
    slope = torch.cat(
        [torch.zeros_like(drift), 0.5 * line.expand_as(drift), drift, free[:, kinds:]], 1
    )
    three = [torch.arange(kinds, device=y.device)] * 3
    each = torch.cat([*three, torch.arange(kinds, len(f1), device=y.device)])
    r1, r2, rr, s11, s12, s22 = (one[:, each] for one in (r1, r2, rr, s11, s12, s22))
    level = (r1 - slope * s12) / s11.clamp(min=1e-6)
    squares = rr - 2 * (level * r1 + slope * r2)
    squares = squares + level * (level * s11 + 2 * slope * s12) + slope.square() * s22
    squares = squares.clamp(min=0) / some
    begun = (t >= (rows - n).unsqueeze(1)).to(y.dtype)
    end = ((y * begun) @ bank.gains).unflatten(1, (2, -1))[:, :, each]
    power = bank.powers[n][:, each]
    after = power[..., 0] * level.unsqueeze(2) + power[..., 1] * slope.unsqueeze(2)
    return Smoothed(end[:, 0] + after[..., 0], end[:, 1] + after[..., 1], squares)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _ahead(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns what a slope of 1 adds (K, 64), and the variance of errors by step (K, 64), of the
    models of ``smooth``, in its order."""
    table = constants()
    kinds = len(_FLAT)
    table = torch.cat([table[:kinds]] * 3 + [table[kinds:]])
    alpha, beta, phi = (one.unsqueeze(1) for one in table.unbind(1))
    steps = torch.cumsum(phi ** torch.arange(1, BLOCK + 1), 1)
    moved = alpha + beta * steps  # what an error of 1 moves the forecast so many steps later
    variance = 1 + F.pad(torch.cumsum(moved.square(), 1), (1, 0))[:, :-1]
    return steps.to(device, dtype), variance.to(device, dtype)


class Autoregressions(NamedTuple):
    """Autoregressions of zero-mean series.

    Attributes:
        weights: of the last 12 values, the latest first (N, 12).
        reflections: (N, 12), shrunk.
        squares: mean squared error (N,).
    """

    weights: Tensor
    reflections: Tensor
    squares: Tensor


def burg(y: Tensor, mask: Tensor) -> Autoregressions:
    """Fits autoregressions by reflections (Burg 1975), each drawn to 0 by its own uncertainty:
    stable, and without a choice of order.

    Args:
        y: values of mean 0 (N, M), 0 where the mask is.
        mask: 1 for what counts (N, M).
    """
    ahead, back, m = y, y, mask
    n = mask.sum(1)
    squares = y.square().sum(1) / n.clamp(min=1)
    weights = y.new_zeros(len(y), _ORDER)
    found = []
    for p in range(_ORDER):
        ahead, back = ahead[:, 1:], back[:, :-1]
        m = m[:, 1:] * mask[:, : mask.shape[1] - p - 1]
        some = m.sum(1)
        both = (m * (ahead.square() + back.square())).sum(1)
        k = 2 * (m * ahead * back).sum(1) / both.clamp(min=1e-12)
        k = k * (1 - 2 / (some * k.square()).clamp(min=1e-6)).clamp(min=0) * (some > 2)
        k = k.clamp(-0.999, 0.999)
        found.append(k)
        k1 = k.unsqueeze(1)
        ahead, back = ahead - k1 * back, back - k1 * ahead
        old = weights[:, :p]
        weights = torch.cat([old - k1 * old.flip(1), k1, weights[:, p + 1 :]], 1)
        squares = squares * (1 - k.square())
    return Autoregressions(weights, torch.stack(found, 1), squares)


def _follow(y: Tensor, fit: Autoregressions) -> tuple[Tensor, Tensor]:
    """Returns what follows values y (N, M) (N, 64), and what an error of 1 has become at each step
    (N, 64), 1 at the first."""
    past = F.pad(y, (_ORDER, 0))[:, -_ORDER:].flip(1)
    shock = torch.zeros_like(past)
    shock[:, 0] = 1.0
    state = torch.stack([past, shock], 1)
    weights, found = fit.weights.unsqueeze(1), []
    for _ in range(BLOCK):
        now = (state * weights).sum(2, keepdim=True)
        state = torch.cat([now, state[:, :, :-1]], 2)
        found.append(now)
    both = torch.cat(found, 2)
    return both[:, 0], F.pad(both[:, 1], (1, 0), value=1.0)[:, :-1]


def local_forecasts(history: History, adjusted: Tensor, season: Tensor, unit: Tensor) -> Local:
    """Returns what local models say of the last 192 rows of histories.

    Args:
        history: N of them.
        adjusted: their values less the season (N, L).
        season: of the next 64 rows (N, 64).
        unit: local scales (N, 1).
    """
    mask, z = history.mask[:, -_LONGER:], adjusted[:, -_LONGER:]
    rows = z.shape[1]
    count = history.count.clamp(max=rows)
    t = torch.arange(rows, device=z.device)
    # A gap carries the last value less the season of its own row.
    z = z.gather(1, torch.where(mask > 0, t, 0).cummax(1).values)
    last = z[:, -1:]
    begun = (t >= (rows - count).unsqueeze(1)).to(z.dtype)
    z = (z - last) / unit * begun
    m = mask * begun
    late, late_m = z[:, -_ROWS:], m[:, -_ROWS:]
    recent = count.clamp(max=late.shape[1])
    start = late.gather(1, (late.shape[1] - recent).to(torch.int64).unsqueeze(1))
    some = late_m.sum(1, keepdim=True).clamp(min=1)
    fit = smooth(late - start, late_m, recent)
    steps, variance = _ahead(z.dtype, z.device)
    counted = some.clamp(max=_COUNTED)
    score = -0.5 * counted * (fit.squares + 1e-4).log()
    kinds = len(_FLAT)
    groups = [slice(k * kinds, (k + 1) * kinds) for k in range(3)] + [slice(3 * kinds, None)]
    paths, scales, shares = [], [], []
    for one in groups:
        share = score[:, one].softmax(1)
        flat = (share * fit.level[:, one]).sum(1, keepdim=True)
        paths.append(start + flat + (share * fit.slope[:, one]) @ steps[one])
        scales.append((share * fit.squares[:, one]).sum(1, keepdim=True))
        shares.append(share)
    es = scales[-1] * (shares[-1] @ variance[groups[-1]])
    alphas = constants()[:, 0].to(z)
    smoothness = [shares[0] @ alphas[:kinds], shares[-1] @ alphas[kinds:]]
    mean = (m * z).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp(min=1)
    change = (z[:, 1:] - z[:, :-1]) * m[:, 1:] * m[:, :-1]
    pairs = (m[:, 1:] * m[:, :-1]).sum(1, keepdim=True)
    rise = change.sum(1, keepdim=True) / pairs.clamp(min=1)
    pair = F.pad(m[:, 1:] * m[:, :-1], (1, 0))
    both = torch.cat([(z - mean) * m, (F.pad(change, (1, 0)) - rise) * pair])
    auto = burg(both, torch.cat([m, pair]))
    follow, shock = _follow(both, auto)
    values, moves = follow.chunk(2)
    psi, psi_moves = shock.chunk(2)
    of_values, of_moves = auto.squares.unsqueeze(1).chunk(2)
    paths += [mean + values, torch.cumsum(moves + rise, 1)]
    scales += [of_values, of_moves]
    spread = [es, of_values * torch.cumsum(psi.square(), 1)]
    spread.append(of_moves * torch.cumsum(torch.cumsum(psi_moves, 1).square(), 1))
    widths = (torch.stack(spread, 2) + 1e-6).sqrt()
    widths = torch.minimum(widths, _WIDEST * widths[:, :1])
    chosen = torch.tensor(_STEPS, device=z.device) - 1
    few = torch.tensor(_FEW_STEPS, device=z.device) - 1
    inputs = [
        *(torch.asinh(paths[k][:, chosen]) for k in (1, 2, 3, 4, 5)),
        widths[:, few].log().flatten(1),
        0.5 * (torch.cat(scales, 1) + 1e-4).log(),
        torch.stack(smoothness, 1),
        *(one[:, :_REFLECTIONS] for one in auto.reflections.chunk(2)),
    ]
    forecasts = torch.stack(paths, 2) * unit.unsqueeze(2) + (last + season).unsqueeze(2)
    return Local(forecasts, torch.cat(inputs, 1), widths * unit.unsqueeze(2))
