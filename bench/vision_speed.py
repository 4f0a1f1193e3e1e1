"""Vim-T on a CPU against the published code's own CPU path: forward pass and training step.

    LONGSEQ_UPSTREAM_VIM=... python -m longseq.bench.vision_speed [--size 224] [--batch 1] [--out
    FILE.json]

Both sides run in one process, in turn, with the same weights, images and threads; times are
medians. The published code needs a CUDA device for its fused scan: its CPU path is its sequential
``selective_scan_ref``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from longseq.bench.vision_upstream import load_vim, make_vim
from longseq.core.command_line import CommandParser
from longseq.core.files import atomic_path
from longseq.core.shell.doctor import cpu_model
from longseq.vision import create_model


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """Returns one forward pass without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return model(images)

    return run


def training_step(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """Returns one step of AdamW: forward, backward, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    target = torch.zeros(len(images), dtype=torch.int64)

    def run() -> object:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), target).backward()
        return optimizer.step()

    return run


def main() -> int:
    """Prints the table and writes it as JSON where asked."""
    parser = CommandParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224, help="side of the images (224)")
    parser.add_argument("--batch", type=int, default=1, help="images per batch (1)")
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each, after one to warm up (3)"
    )
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args()
    root = os.environ.get("LONGSEQ_UPSTREAM_VIM")
    if root is None:
        print("error: LONGSEQ_UPSTREAM_VIM names no checkout of hustvl/Vim", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    theirs = make_vim(load_vim(root), img_size=args.size, patch_size=16, embed_dim=192, depth=24)
    ours = create_model("vim_tiny", img_size=args.size, drop_path=0.0)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(args.batch, 3, args.size, args.size)
    with torch.inference_mode():
        difference = float((ours.eval()(images) - theirs.eval()(images)).abs().max())
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"Vim-T, batch {args.batch}, {args.size} px; largest difference of the logits "
        f"{difference:.1e}"
    )
    rows = []
    for name, make in (("forward", forward), ("training step", training_step)):
        sides = {"longseq": make(ours, images), "published": make(theirs, images)}
        for run in sides.values():
            run()
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.repeats):
            for side, run in sides.items():
                times[side].append(timed(run))
        seconds = {side: statistics.median(values) for side, values in times.items()}
        ratio = seconds["published"] / seconds["longseq"]
        rows.append({"what": name, **seconds, "ratio": ratio})
        print(
            f"{name:<14} longseq {seconds['longseq']:8.3f} s   published "
            f"{seconds['published']:8.3f} s   {ratio:5.1f} times faster"
        )
    if args.out:
        result = {
            "cpu": cpu_model(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "batch": args.batch,
            "size": args.size,
            "difference": difference,
            "rows": rows,
        }
        with atomic_path(args.out) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
