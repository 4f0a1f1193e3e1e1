"""``longseq weather query``: fields at any place and time from scattered observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser
from longseq.core.compare import whole_numbers
from longseq.core.figures import new_figure, save_png
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import write_rows
from longseq.core.training import fit, seed_everything
from longseq.core.training.loading import load_task
from longseq.weather.forecasting.flows import FLOWS
from longseq.weather.forecasting.query_baselines import GaussianProcess, InverseDistance, Question
from longseq.weather.forecasting.query_task import FieldQuery, QueryData

Answer = Callable[[Question], np.ndarray]
NETWORK = "attention"


def plain_answers(data: QueryData, counts: Sequence[int]) -> dict[str, Answer]:
    """Returns plain answers to questions, fitted on training and validation flows.

    Args:
        data: observations and questions.
        counts: of observations that validation has, in turn.
    """
    held = [data.questions_of("valid", count) for count in counts]
    valid = [one for windows in held for one in windows[:: max(1, len(windows) // 8)]]
    duration = float(max(1, data.span - 1))
    climate = data.runs("train").mean((0, 1, 3, 4)).numpy()
    made: dict[str, Answer] = {
        "mean": lambda one: np.broadcast_to(climate, one["target"].shape),
        "inverse distance": InverseDistance(duration).fit(valid),
        "Gaussian process": GaussianProcess(duration).fit(data.questions_of("train"), valid),
    }
    return made


def network(task: FieldQuery) -> Answer:
    """Returns a trained network as an answer to questions."""

    def answer(one: Question) -> np.ndarray:
        with torch.inference_mode():
            found: Tensor = task(*(one[name][None] for name in ("values", "where", "ask")))
        return found[0].numpy()

    return answer


def compare_answers(
    data: QueryData, made: Mapping[str, Answer], counts: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Returns the root mean square error of every answer on the test flows, by the number of
    observations.

    Args:
        data: observations and questions.
        made: answers by name.
        counts: of observations.
    """
    found: dict[int, dict[str, float]] = {}
    for count in counts:
        windows = data.questions_of("test", count)
        truth = np.stack([one["target"].numpy() for one in windows])
        found[count] = {
            name: float(np.sqrt(np.mean((np.stack([answer(w) for w in windows]) - truth) ** 2)))
            for name, answer in made.items()
        }
    return found


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather query``."""
    parser = CommandParser(
        prog="longseq weather query",
        description="Generates a flow, observes it at irregular places and times, trains a network "
        "to say what it is at any others, and scores it beside inverse-distance weighting and a "
        "Gaussian process.",
    )
    parser.add_argument(
        "--flow",
        default="quasigeostrophic",
        help=f"{', '.join(FLOWS)}, or the class path of one of your own (quasigeostrophic)",
    )
    parser.add_argument(
        "--observations", default="16,64,128", help="in a window of the test (16,64,128)"
    )
    parser.add_argument("--span", type=int, default=9, help="frames of a window (9)")
    parser.add_argument("--steps", type=int, default=600, help="of the training (600)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (0)")
    parser.add_argument("--members", type=int, default=6, help="training flows (6)")
    parser.add_argument("--frames", type=int, default=200, help="of every flow (200)")
    parser.add_argument("--size", type=int, default=32, help="points along a side (32)")
    parser.add_argument("--every", type=int, help="time steps between frames (the flow's own)")
    parser.add_argument("--spin_up", type=int, help="time steps before (the flow's own)")
    parser.add_argument("--out", default="outputs/weather/query", help="folder to write")
    args = parser.parse_args(argv)
    check_positive("--steps", args.steps)
    check_positive("--span", args.span)
    counts = whole_numbers("--observations", args.observations)
    for count in counts:
        check_positive("--observations", count)
    most = max(counts)
    own = {name: getattr(args, name) for name in ("span", "size", "members", "frames", "flow")}
    data = QueryData(least=min(8, most), most=most, every=args.every, spin_up=args.spin_up, **own)
    rows, columns = data.flow.shape
    print(f"{args.flow}: flows of {args.frames} frames, {rows} × {columns} points …", flush=True)
    made = plain_answers(data, counts)
    seed_everything(args.seed)
    task = FieldQuery(duration=float(max(1, args.span - 1)), **data.model_arguments())
    done = fit(task, data, args.out, args.steps, name=NETWORK, limit_val_batches=0)
    trained = load_task(done.checkpoint, "weather")
    assert isinstance(trained, FieldQuery)
    trained.eval()
    made[NETWORK] = network(trained)
    _report(data, compare_answers(data, made, counts), made, Path(args.out))
    return 0


def _report(
    data: QueryData,
    found: Mapping[int, Mapping[str, float]],
    made: Mapping[str, Answer],
    out: Path,
) -> None:
    for count, errors in found.items():
        scores = [
            Score(name, value, "model" if name == NETWORK else "baseline")
            for name, value in errors.items()
        ]
        what = f"{count} observations in {data.span} frames, in deviations of the flow"
        print_table(scores, "RMSE", what)
        print(verdict(scores, "RMSE"), flush=True)
    rows = [[name, n, value] for n, errors in found.items() for name, value in errors.items()]
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "scores.csv", {"model": "", "observations": "d", "rmse": ".6g"}, rows)
    _draw(data, made, max(found), out / "field.png")
    print(f"{out}: scores.csv, field.png and checkpoints")


def _draw(data: QueryData, made: Mapping[str, Answer], count: int, path: Path) -> None:
    """Draws the first channel in the middle of a test window, and what is made of it."""
    one, (rows, columns) = data.questions_of("test", count)[0], data.flow.shape
    middle = data.span // 2
    grid = torch.cartesian_prod(*(torch.arange(n) / n for n in (rows, columns)))
    ask = torch.cat([grid, torch.full((len(grid), 1), float(middle))], 1)
    truth = data.runs("test")[0, middle].flatten(1).T
    whole = {**one, "ask": ask, "target": truth}
    panels = {"truth": truth.numpy(), **{name: answer(whole) for name, answer in made.items()}}
    figure = new_figure(3 * len(panels), 3)
    limit = float(truth[:, 0].abs().max())
    left, low = -0.5 / columns, -0.5 / rows  # a point is in the middle of its cell
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels.items()):
        axes.imshow(
            values[:, 0].reshape(rows, columns),
            origin="lower",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            extent=(left, 1 + left, low, 1 + low),
            aspect="auto",
        )
        axes.scatter(one["where"][:, 1], one["where"][:, 0], s=3, c="black")
        axes.set(title=name, xticks=[], yticks=[])
    save_png(figure, path)
