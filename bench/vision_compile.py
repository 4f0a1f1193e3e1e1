"""``torch.compile`` of every registered image model: graphs, seconds, and the difference from the
model itself.

    python -m longseq.bench.vision_compile [--models "vim*"] [--backend inductor] [--largest 60]

A model fails if it does not become one graph (``fullgraph=True``). The default backend, aot_eager,
captures and differentiates without generating code; inductor needs a C++ compiler and minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
import torch._dynamo

from longseq.core.command_line import CommandParser
from longseq.vision import create_model, list_models
from longseq.vision.models.registry import MODELS


def side(name: str) -> int:
    """Returns the side in pixels at which a model is compiled: its own, at most 64."""
    return min(64, int(MODELS[name].kwargs.get("img_size", 64)))


def check(name: str, backend: str) -> tuple[float, float]:
    """Compiles a model and runs it on two images.

    Args:
        name: one of ``list_models()``.
        backend: of ``torch.compile``.

    Returns:
        Seconds, and the largest difference from the model, relative to its greatest logit.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, images = create_model(name).eval(), torch.randn(2, 3, side(name), side(name))
    with torch.no_grad():
        expected = model(images)
        start = time.perf_counter()
        found = torch.compile(model, backend=backend, fullgraph=True)(images)
        seconds = time.perf_counter() - start
    return seconds, float((found - expected).abs().max() / expected.abs().max())


def parameters(name: str) -> int:
    """Returns the number of a model's parameters, without making them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if a model cannot be compiled or gives other results."""
    parser = CommandParser(
        prog="python -m longseq.bench.vision_compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", default="*", help="pattern of names")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile")
    parser.add_argument("--largest", type=float, default=60, help="million parameters at most")
    args = parser.parse_args(argv)
    failed = 0
    for name in list_models(args.models):
        millions = parameters(name) / 1e6
        if millions > args.largest:
            print(f"{name:24} left out: {millions:.0f} M parameters (--largest)", flush=True)
            continue
        try:
            seconds, difference = check(name, args.backend)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, LookupError) as error:
            failed += 1
            print(f"{name:24} fails: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        bad = not difference <= 1e-3
        failed += bad
        note = "  differs" if bad else ""
        print(
            f"{name:24} one graph, {seconds:6.1f} s, difference {difference:.1e}{note}", flush=True
        )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
