"""Image models as ONNX: what onnxruntime gives beside the model, at two sizes, or why there is no
file."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from longseq.bench.vision_compile import parameters, side
from longseq.core.command_line import CommandParser
from longseq.core.errors import LongseqError
from longseq.vision import create_model, list_models
from longseq.vision.export import export


def check(name: str, pixels: int) -> tuple[float, float]:
    """Exports a model for images of one size.

    Args:
        name: one of ``list_models()``.
        pixels: side of the images.

    Returns:
        Seconds, and the largest difference of batches of 1 and 3 from the model.

    Raises:
        LongseqError: if the model cannot be exported, or the file gives other results.
    """
    torch.manual_seed(0)
    model, start = create_model(name).eval(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        difference = export(model, Path(folder) / "model.onnx", (3, pixels, pixels))
    return time.perf_counter() - start, difference


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if a model cannot be exported or gives other results."""
    parser = CommandParser(
        prog="python -m longseq.bench.vision_export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="*", help="pattern of names")
    parser.add_argument("--largest", type=float, default=60, help="million parameters at most")
    args = parser.parse_args(argv)
    failed = 0
    for name in list_models(args.models):
        millions = parameters(name) / 1e6
        if millions > args.largest:
            print(f"{name:24} left out: {millions:.0f} M parameters (--largest)", flush=True)
            continue
        for pixels in (side(name), side(name) + 13):
            try:
                seconds, difference = check(name, pixels)
            except LongseqError as error:
                failed += 1
                print(f"{name:24} {pixels:4} px refused: {error}", flush=True)
            else:
                print(
                    f"{name:24} {pixels:4} px {seconds:6.1f} s, difference {difference:.1e}",
                    flush=True,
                )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
