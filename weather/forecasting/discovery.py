"""What a model lacks, as terms of an equation: regression on the errors of its short forecasts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_number
from longseq.core.command_line import CommandParser
from longseq.core.errors import ArgumentError, ConfigError, did_you_mean
from longseq.core.figures import new_figure, save_png
from longseq.core.registry import keywords
from longseq.core.tables import check_table, write_rows
from longseq.weather.forecasting.flows import FLOWS, Flow, make_flow

MOST_POINTS = 100_000
LEAST_ERROR = 1e-9
"""Of the observed tendency: smaller errors are rounding."""


@dataclass(frozen=True)
class Missing:
    """What one channel of a model lacks.

    Attributes:
        coefficients: term → coefficient of ∂/∂t of the channel; only terms that were kept.
        deviations: term → standard deviation of the coefficient after Bayes.
        explained: share of the errors' variance that the terms explain in pairs that were held out.
    """

    coefficients: dict[str, float]
    deviations: dict[str, float]
    explained: float

    def __str__(self) -> str:
        if not self.coefficients:
            return "nothing"
        return " ".join(f"{value:+.4f} {name}" for name, value in self.coefficients.items())


def regress(
    terms: Mapping[str, np.ndarray], target: np.ndarray, threshold: float = 0.05
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns coefficients and their deviations of the few terms that make up a target.

    A relevance vector machine (Tipping 2001; scikit-learn's ``ARDRegression``) on the terms at unit
    size; then terms whose part of the target is below the threshold are dropped and the others are
    fitted again, until all that are left are above it.

    Args:
        terms: name → values (N).
        target: (N).
        threshold: root mean square of a term with its coefficient, relative to the target's.
    """
    from sklearn.linear_model import ARDRegression

    size = float(np.sqrt(np.mean(target**2)))
    kept = {name: float(np.sqrt(np.mean(one**2))) for name, one in terms.items()}
    kept = {name: scale for name, scale in kept.items() if scale > 0}
    found: dict[str, float] = {}
    sigma: dict[str, float] = {}
    while kept and size > 0:
        columns = np.stack([terms[name] / scale for name, scale in kept.items()], 1)
        model = ARDRegression(fit_intercept=False).fit(columns, target / size)
        # Rows of sigma_ are of the weights that the machine has not pruned.
        alive = np.flatnonzero(model.lambda_ < model.threshold_lambda)
        spread = np.zeros(len(kept))
        spread[alive] = np.sqrt(np.diag(model.sigma_))
        parts = dict(zip(kept, zip(model.coef_, spread)))
        strong = [name for name, (weight, _) in parts.items() if abs(weight) >= threshold]
        if len(strong) == len(kept):
            found = {name: size * w / kept[name] for name, (w, _) in parts.items()}
            sigma = {name: size * s / kept[name] for name, (_, s) in parts.items()}
            break
        kept = {name: kept[name] for name in strong}
    return found, sigma


def discover(
    model: Flow,
    before: Tensor,
    after: Tensor,
    steps: int = 1,
    threshold: float = 0.05,
    seed: int = 0,
) -> list[Missing]:
    """Returns what every channel of a model lacks to forecast what was observed.

    MEDIDA (Mojgani, Chattopadhyay and Hassanzadeh 2022, arXiv 2110.00546; quasi-geostrophic
    2309.13211) without its data assimilation: the model starts from observed fields, its forecast
    misses the next ones by (after - forecast) / Δt, and a sparse regression on the terms of
    ``Flow.terms``, as means of before and after, says which terms make up that. Observations must
    be of all points and nearly without noise: the errors' noise is √2 σ / Δt. The interval must be
    short, as what the model lacks also changes its forecast within it. A channel whose errors,
    relative to its observed tendency, are below the threshold times the worst channel's lacks
    nothing: it answers to what the others lack.

    Args:
        model: the imperfect model.
        before: observed fields (B, C, H, W).
        after: fields that followed each (B, C, H, W).
        steps: of the model between them.
        threshold: see ``regress``.
        seed: of the points that are drawn, where there are more than 100,000.

    Raises:
        ArgumentError: for fields of another shape, or fewer than five pairs.
        ConfigError: if the flow has no terms.
    """
    shape = (model.channels, *model.shape)
    if before.shape != after.shape or before.shape[1:] != shape or len(before) < 5:
        raise ArgumentError(
            f"discover: before and after must be five pairs or more of {shape}, got "
            f"{tuple(before.shape)} and {tuple(after.shape)}"
        )
    before, after = before.double(), after.double()
    forecast = model.fields(model.advance(model.state_of(before), steps))
    errors, tendency = ((after - one) / (steps * model.step) for one in (forecast, before))
    size = (errors.square().mean((0, 2, 3)) / tendency.square().mean((0, 2, 3))).sqrt()
    first, then = model.terms(before), model.terms(after)
    terms = {name: (first[name] + then[name]) / 2 for name in first}
    held = len(before) // 5
    rng = np.random.default_rng(seed)
    points = (len(before) - held) * math.prod(model.shape)
    chosen = rng.permutation(points)[:MOST_POINTS]

    def column(field: Tensor, part: slice) -> np.ndarray:
        return field[part].reshape(-1).numpy()

    train, test = slice(0, len(before) - held), slice(len(before) - held, None)
    library = {name: column(one, train)[chosen] for name, one in terms.items()}
    found = []
    for channel in range(model.channels):
        error = errors[:, channel]
        target = column(error, train)[chosen]
        if size[channel] <= max(LEAST_ERROR, threshold * float(size.max())):
            target = np.zeros_like(target)
        weights, spread = regress(library, target, threshold)
        rest = column(error, test).copy()
        whole = float(np.mean(rest**2))
        for name, weight in weights.items():
            rest -= weight * column(terms[name], test)
        explained = 1 - float(np.mean(rest**2)) / whole if whole else 0.0
        found.append(Missing(weights, spread, explained))
    return found


def observe(
    truth: Flow,
    pairs: int,
    steps: int,
    noise: float = 0.0,
    seed: int = 0,
    sampler: Flow | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns fields of a flow and those that follow them, float64 (B, C, H, W).

    Args:
        truth: the flow.
        pairs: B; five members side by side are taken at times that are the flow's ``every`` apart.
        steps: between before and after.
        noise: standard deviation of observations' errors, in deviations of every channel.
        seed: of flows and noise.
        sampler: the same flow with longer time steps, which is spun up and gives the first fields
            of the pairs; ``truth`` if None.
    """
    members, sampler = min(5, pairs), sampler or truth
    state = sampler.advance(sampler.start(members, seed), sampler.spin_up)
    found = []
    for _ in range(-(-pairs // members)):
        state = sampler.advance(state, sampler.every)
        found.append([truth.fields(one) for one in (state, truth.advance(state, steps))])
    before, after = (torch.cat(one)[:pairs] for one in zip(*found))
    generator = torch.Generator().manual_seed(seed)
    size = noise * before.std((0, 2, 3), keepdim=True)

    def noisy(field: Tensor) -> Tensor:
        draw = torch.randn(field.shape, generator=generator, dtype=torch.float64)
        return field + size * draw

    return noisy(before), noisy(after)


def _changes(text: str, flow: type) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, _, value = (one.strip() for one in part.partition("="))
        if name not in keywords(flow):
            near = did_you_mean(name, keywords(flow))
            raise ConfigError(f"--change: the flow has no {name!r}; {near}")
        try:
            found[name] = check_number("--change", float(value))
        except ValueError:
            raise ConfigError(f"--change: {part!r} is no NAME=NUMBER") from None
    return found


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather discover``."""
    parser = CommandParser(
        prog="longseq weather discover",
        description="Generates a flow, takes a model of it in which something was changed, and "
        "finds what that model lacks from the errors of its short forecasts (MEDIDA).",
        example="longseq weather discover --change growth=0 --out missing.csv\n"
        "longseq weather discover --flow quasigeostrophic --change drag=0 --out missing.csv",
    )
    parser.add_argument(
        "--flow",
        default="kuramoto_sivashinsky",
        help=f"{', '.join(FLOWS)}, or a class path (kuramoto_sivashinsky)",
    )
    parser.add_argument("--change", required=True, help="of the model: growth=0 or drag=0,beta=0.6")
    parser.add_argument("--size", type=int, default=64, help="points along a side (64)")
    parser.add_argument("--pairs", type=int, default=200, help="observed pairs of fields (200)")
    parser.add_argument("--steps", type=int, default=1, help="time steps of a forecast (1)")
    parser.add_argument("--step", type=float, default=0.01, help="length of a time step (0.01)")
    parser.add_argument(
        "--noise", type=float, default=0.0, help="of observations, in deviations of the flow (0)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.05, help="least part of the error of a term (0.05)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the flow (0)")
    parser.add_argument("--out", required=True, help=".csv table of the terms")
    parser.add_argument("--png", help="picture of the terms to write")
    args = parser.parse_args(argv)
    check_table(args.out)
    if args.pairs < 5 or args.steps < 1:
        raise ConfigError(f"--pairs must be ≥ 5 and --steps ≥ 1, got {args.pairs}, {args.steps}")
    sampler = make_flow(args.flow, args.size)
    truth = make_flow(args.flow, args.size, {"step": args.step})
    truth.terms(truth.fields(truth.start(1, 0)))  # so that a flow without any fails at once
    model = make_flow(
        args.flow, args.size, {"step": args.step, **_changes(args.change, type(truth))}
    )
    print(f"{args.flow}: {args.pairs} pairs {args.steps * args.step:g} apart …", flush=True)
    before, after = observe(truth, args.pairs, args.steps, args.noise, args.seed, sampler)
    found = discover(model, before, after, args.steps, args.threshold, args.seed)
    for number, one in enumerate(found, 1):
        share = f"{one.explained:.1%} of the errors' variance in pairs that were held out"
        print(f"missing in ∂/∂t of channel {number}: {one} ({share})")
    _write(args.out, args.png, found)
    return 0


def _write(out: str, png: str | None, found: Sequence[Missing]) -> None:
    columns = {"channel": "d", "term": "", "coefficient": ".6g", "deviation": ".3g"}
    rows = [
        [number, name, value, one.deviations[name]]
        for number, one in enumerate(found, 1)
        for name, value in one.coefficients.items()
    ]
    write_rows(Path(out), columns, rows)
    print(out)
    if png:
        figure = new_figure(6, 1.2 + 0.3 * max(1, len(rows)))
        axes = figure.subplots()
        labels = [f"{name} (channel {number})" for number, name, *_ in rows]
        axes.barh(labels, [row[2] for row in rows], xerr=[row[3] for row in rows])
        axes.set(xlabel="coefficient")
        axes.axvline(0, color="black", linewidth=0.8)
        save_png(figure, png)
        print(png)
