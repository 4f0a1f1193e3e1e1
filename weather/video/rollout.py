"""``longseq weather rollout``: video frames after a context by one model or several, beside
persistence, with step time and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.figures import new_figure, save_png
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import check_table, write_rows
from longseq.core.training.loading import load_data, load_task
from longseq.weather.video.moving_digits import MovingDigits
from longseq.weather.video.task import VideoForecaster

BASELINES = ("persistence", "context mean")


@dataclass(frozen=True)
class Rollout:
    """Errors of a rollout.

    Args:
        errors: model or baseline → mean squared error per pixel of every frame (n).
        seconds: the model's time for the rollout.
        frames: the first video's true and predicted frames that were kept, by their number.
    """

    errors: dict[str, np.ndarray]
    seconds: float
    frames: dict[int, tuple[np.ndarray, np.ndarray]]


def roll_out(
    task: VideoForecaster, videos: Tensor, name: str = "conv_s5", keep: Sequence[int] = ()
) -> Rollout:
    """Rolls out videos and scores every frame as it comes; nothing but the kept frames is held.

    Args:
        task: in evaluation mode.
        videos: (B, context + n, C, H, W).
        name: of the model.
        keep: numbers of frames of the first video to keep, from 1.
    """
    context, truth = videos[:, : task.context], videos[:, task.context :]
    fixed = {"persistence": context[:, -1], "context mean": context.mean(1)}
    errors: dict[str, list[float]] = {key: [] for key in (name, *BASELINES)}
    kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    start = time.perf_counter()
    with torch.inference_mode():
        for index, frame in enumerate(task.model.rollout(context, truth.shape[1])):
            for key, guess in ((name, frame), *fixed.items()):
                errors[key].append(float((guess - truth[:, index]).double().square().mean()))
            if index + 1 in keep:
                kept[index + 1] = (
                    truth[0, index, 0].numpy().copy(),
                    frame[0, 0].cpu().numpy().copy(),
                )
    seconds = time.perf_counter() - start
    return Rollout({key: np.array(value) for key, value in errors.items()}, seconds, kept)


def step_seconds(task: VideoForecaster, videos: Tensor, repeats: int = 5) -> float:
    """Returns the CPU time of a training step without the optimiser: the median of some.

    Args:
        task: stays in evaluation mode.
        videos: a training batch (B, L, C, H, W).
        repeats: steps that are measured, after one that is not.
    """
    found = []
    task.train()
    for _ in range(repeats + 1):
        start = time.process_time()
        task.compute({"video": videos})["loss"].backward()
        found.append(time.process_time() - start)
        task.zero_grad(set_to_none=True)
    task.eval()
    return float(np.median(found[1:]))


def peak_memory() -> float:
    """Returns the greatest memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024**2)


def load_forecaster(path: str | Path, **changes: Any) -> tuple[VideoForecaster, MovingDigits]:
    """Returns the video model in a checkpoint and the data module that it was trained with.

    Args:
        path: the checkpoint.
        **changes: arguments of the data module in place of the checkpoint's.

    Raises:
        DataError: if it holds another task.
    """
    task = load_task(path, "weather")
    if not isinstance(task, VideoForecaster):
        raise DataError(
            f"is a checkpoint of {type(task).__name__}, not of VideoForecaster", path=path
        )
    return task, load_data(path, MovingDigits, **changes)


def plot_rollout(result: Rollout, image: str | Path) -> None:
    """Draws true and predicted frames above the error of every frame.

    Args:
        result: with kept frames.
        image: PNG to write.
    """
    figure = new_figure(10, 5.5)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.2])[:, 0]
    axes = upper.subplots(2, len(result.frames), squeeze=False)
    for column, (number, pair) in enumerate(result.frames.items()):
        for row, (label, frame) in enumerate(zip(("true", "predicted"), pair)):
            axis = axes[row][column]
            axis.imshow(frame, cmap="magma", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(f"+{number}", fontsize="small")
            if column == 0:
                axis.set_ylabel(label)
    chart = lower.subplots()
    for key, values in result.errors.items():
        chart.plot(np.arange(1, len(values) + 1), values, label=key)
    chart.set(xlabel="frames after the context", ylabel="mean squared error", ylim=(0, None))
    chart.legend()
    save_png(figure, image)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather rollout``."""
    parser = CommandParser(prog="longseq weather rollout", description=__doc__)
    parser.add_argument(
        "--ckpt_path",
        required=True,
        nargs="+",
        help="checkpoints of video models: of one, or of several that saw the same data",
    )
    parser.add_argument("--frames", type=int, default=100, help="frames after the context (100)")
    parser.add_argument("--videos", type=int, default=32, help="test videos (32)")
    parser.add_argument("--source", help="IDX file of images, if not what the model was trained on")
    parser.add_argument(
        "--out", required=True, help=".csv table: frame, and an error for every model"
    )
    parser.add_argument("--png", help="picture of frames and errors to write")
    args = parser.parse_args(argv)
    if args.frames < 1 or args.videos < 1:
        raise ConfigError(
            f"--frames and --videos must be at least 1, got {args.frames} and {args.videos}"
        )
    check_table(args.out)
    changes = {"source": args.source} if args.source else {}
    loaded = [load_forecaster(path, **changes) for path in args.ckpt_path]
    task, data = loaded[0]
    for path, (other, its_data) in zip(args.ckpt_path[1:], loaded[1:]):
        if other.context != task.context or dict(its_data.hparams) != dict(data.hparams):
            raise ConfigError(f"{path} and {args.ckpt_path[0]} were not trained on the same data")
    found = data.videos("test", args.videos, task.context + args.frames)
    videos = torch.stack([found[i]["video"] for i in range(args.videos)])
    before = peak_memory()
    keep = sorted({n for n in (1, 2, 5, 10, 20, 40, 60, 80, 100, args.frames) if n <= args.frames})
    results: dict[str, Rollout] = {}
    for one, _ in loaded:
        core = str(one.hparams["core"])
        name = core if core not in results else f"{core} ({len(results) + 1})"
        results[name] = roll_out(one, videos, name, keep)
    first = next(iter(results.values()))
    errors = {name: one.errors[name] for name, one in results.items()}
    fixed = {key: first.errors[key] for key in BASELINES}
    result = Rollout({**errors, **fixed}, first.seconds, first.frames)
    after = peak_memory()
    write_errors(args.out, result)
    scores = [
        Score(key, float(values.mean()), "model" if key not in BASELINES else "baseline")
        for key, values in result.errors.items()
    ]
    print_table(
        scores,
        "mse",
        f"{args.videos} test videos, mean over {args.frames} frames after {task.context}",
    )
    print(verdict(scores, "mean squared error"))
    print("frame   " + "".join(f"{key:>15}" for key in result.errors))
    for number in keep:
        print(
            f"{number:>5}   "
            + "".join(f"{values[number - 1]:>15.4f}" for values in result.errors.values())
        )
    batch = data.train_dataloader().dataset[0]["video"]
    for (one, _), (name, made) in zip(loaded, results.items()):
        size = sum(parameter.numel() for parameter in one.parameters())
        print(
            f"{name}: {size:,} parameters, {1e3 * step_seconds(one, batch):.0f} ms of CPU time per "
            f"training step of {batch.shape[0]} × {batch.shape[1]} frames, "
            f"{args.frames * args.videos / made.seconds:,.0f} frames/s in the rollout"
        )
    print(f"peak memory {before:.0f} MiB before the rollout, {after:.0f} MiB after it.")
    print(args.out)
    if args.png:
        plot_rollout(result, args.png)
        print(args.png)
    return 0


def write_errors(path: str | Path, result: Rollout) -> None:
    """Writes the error of every frame."""
    columns = {"frame": "d", **{key.replace(" ", "_"): ".6f" for key in result.errors}}
    rows = [[index, *map(float, row)] for index, row in enumerate(zip(*result.errors.values()), 1)]
    write_rows(path, columns, rows)
