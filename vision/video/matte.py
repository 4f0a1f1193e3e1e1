"""``longseq vision matte``: an alpha matte of every frame of a clip, frame by frame."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path
from longseq.core.training.loading import load_task
from longseq.vision.video.clips import open_clip
from longseq.vision.video.network import States
from longseq.vision.video.task import VideoMatting


def matte(
    task: VideoMatting, clip: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields names, frames (3, H, W) and alpha (H, W), one frame at a time: memory does not grow
    with the clip.

    Args:
        task: in evaluation mode.
        clip: names and frames, see ``clips.open_clip``.
    """
    states: States | None = None
    for name, frame in clip:
        with torch.inference_mode():
            alpha, states = task(frame[None, None].to(task.device), states)
        yield name, frame, alpha[0, 0, 0].cpu()


def read_colour(text: str) -> Tensor:
    """Returns a colour "r,g,b" of whole numbers from 0 to 255 as (3, 1, 1) from 0 to 1.

    Raises:
        ConfigError: for anything else.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) < 256 for part in parts):
        raise ConfigError(f"--over is a colour r,g,b of numbers from 0 to 255, got {text!r}")
    return torch.tensor([int(part) / 255 for part in parts]).view(3, 1, 1)


def _save(path: Path, picture: Tensor) -> None:
    """Writes a map from 0 to 1, (H, W) or (3, H, W), as PNG."""
    from PIL import Image

    array = (255 * picture).round().clamp(0, 255).to(torch.uint8).numpy()
    array = array if array.ndim == 2 else np.ascontiguousarray(array.transpose(1, 2, 0))
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, "PNG")


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision matte``."""
    parser = CommandParser(prog="longseq vision matte", description=__doc__)
    parser.add_argument(
        "clip", help="folder or zip of frames, a TIFF of several pages, or an animated image"
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a VideoMatting")
    parser.add_argument("--out", required=True, help="folder to write to: alpha/<frame>.png")
    parser.add_argument("--over", help="colour r,g,b: also over/<frame>.png, what moves before it")
    add_device(parser)
    args = parser.parse_args(argv)
    colour = None if args.over is None else read_colour(args.over)
    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file; --out is a folder", path=folder)
    task = load_task(args.ckpt_path, VideoMatting)
    assert isinstance(task, VideoMatting)
    task.to(args.device)
    count, seen, share = 0, set[str](), 0.0
    for name, frame, alpha in matte(task, open_clip(args.clip)):
        name = name if name not in seen else f"{count:06d}_{name}"  # in two folders of the clip
        seen.add(name)
        _save(folder / "alpha" / f"{name}.png", alpha)
        if colour is not None:
            _save(folder / "over" / f"{name}.png", alpha * frame + (1 - alpha) * colour)
        count, share = count + 1, share + float(alpha.mean())
        if sys.stderr.isatty():
            print(f"\r{count} frames", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{folder}: {count} frames, {share / count:.1%} of their pixels move")
    return 0
