"""The CPU selective scan against its sequential torch reference: speed, memory, and growth with
length.

    python -m longseq.bench.selective_scan [--out FILE.json] [--quick]

Both sides run in the same process, in turn, on the same inputs and threads; times are medians.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from longseq.core.command_line import CommandParser
from longseq.core.files import atomic_path
from longseq.core.ops.backends import native
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.shell.doctor import cpu_model

SHAPE = {"B": 1, "L": 4096, "D": 1536, "N": 16}


def inputs(B: int, L: int, D: int, N: int, grad: bool) -> list[torch.Tensor]:
    """Returns u, delta, A, B, C of the magnitudes that a trained layer has."""
    generator = torch.Generator().manual_seed(0)
    u, b, c = (torch.randn(B, L, n, generator=generator) for n in (D, N, N))
    delta = torch.rand(B, L, D, generator=generator) * 0.1
    A = -torch.arange(1, N + 1).float().repeat(D, 1)
    return [tensor.requires_grad_(grad) for tensor in (u, delta, A, b, c)]


def forward(backend: Any, tensors: list[torch.Tensor]) -> Callable[[], object]:
    """Returns one forward pass without gradients."""

    def run() -> object:
        with torch.no_grad():
            return selective_scan(*tensors, backend=backend)[0]

    return run


def forward_backward(backend: Any, tensors: list[torch.Tensor]) -> Callable[[], object]:
    """Returns one forward and backward pass; the reference's is autograd's, through unbound time
    steps."""
    dy = torch.ones_like(tensors[0])

    def run() -> object:
        y, _ = selective_scan(*tensors, backend=backend)
        return torch.autograd.grad(y, tensors, dy)

    return run


def timed(run: Callable[[], object]) -> float:
    """Returns the seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(
    fast: Callable[[], object], slow: Callable[[], object], rounds: int
) -> dict[str, float]:
    """Returns medians of runs in turn, several fast ones to each slow one, and the ratio of the
    medians."""
    fast()
    slow()
    times: dict[str, list[float]] = {"fast": [], "slow": []}
    for _ in range(rounds):
        times["fast"] += [timed(fast) for _ in range(7)]
        times["slow"].append(timed(slow))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "cpu_ms": 1e3 * medians["fast"],
        "cpu_ms_min": 1e3 * min(times["fast"]),
        "reference_ms": 1e3 * medians["slow"],
        "ratio": medians["slow"] / medians["fast"],
    }


def growth(lengths: list[int]) -> dict[str, object]:
    """Returns the time of forward + backward by length, and the slope on log–log axes."""
    points = []
    for length in lengths:
        run = forward_backward("cpu", inputs(1, length, 64, 16, True))
        run()
        points.append((length, min(timed(run) for _ in range(5))))
    x = [math.log(length) for length, _ in points]
    y = [math.log(seconds) for _, seconds in points]
    mx, my = statistics.mean(x), statistics.mean(y)
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)
    return {"points_ms": {length: 1e3 * seconds for length, seconds in points}, "slope": slope}


def peak_memory() -> dict[str, float]:
    """Returns, from a fresh process, the peak memory of forward + backward beyond the inputs."""
    code = "from longseq.bench.selective_scan import _peak; _peak()"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _peak() -> None:
    small = forward_backward("cpu", inputs(1, 64, 64, 16, True))
    small()  # whatever the first call allocates is not the operator's
    tensors = inputs(**SHAPE, grad=True)
    run = forward_backward("cpu", tensors)
    before = _status("VmRSS")
    run()
    extra = _status("VmHWM") - before
    size = sum(t.numel() * t.element_size() for t in tensors)
    print(json.dumps({"inputs_mb": size / 1e6, "extra_mb": extra / 1e6, "ratio": extra / size}))


def _status(field: str) -> int:
    """Returns a figure of this process in bytes; getrusage's peak would include the parent's at the
    fork."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def main() -> None:
    """Runs all measurements and prints them."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--out", help="JSON file for the figures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="lengths up to 64k instead of 1M")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = {
        "cpu": cpu_model(),
        "isa": native().isa(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    print(
        ", ".join(
            [machine["cpu"], machine["isa"], f"{args.threads} threads, torch {torch.__version__}"]
        )
    )
    print(f"{SHAPE}, float32")
    plain, with_grad = inputs(**SHAPE, grad=False), inputs(**SHAPE, grad=True)
    result = {
        "machine": {**machine, "platform": platform.platform()},
        "shape": SHAPE,
        "forward": compare(forward("cpu", plain), forward("reference", plain), args.rounds),
        "forward_backward": compare(
            forward_backward("cpu", with_grad),
            forward_backward("reference", with_grad),
            args.rounds,
        ),
        "memory": peak_memory(),
        "growth": growth([2**k for k in range(10, 17 if args.quick else 21)]),
    }
    for name in ("forward", "forward_backward"):
        row = result[name]
        print(
            f"{name:17} cpu {row['cpu_ms']:.1f} ms (fastest {row['cpu_ms_min']:.1f})   "
            f"reference {row['reference_ms']:.0f} ms   ratio {row['ratio']:.1f}"
        )
    memory, slope = result["memory"], result["growth"]
    print(
        f"peak memory       {memory['extra_mb']:.0f} MB beyond {memory['inputs_mb']:.0f} MB of "
        f"inputs: {memory['ratio']:.2f} x"
    )
    lengths = list(slope["points_ms"])
    print(f"growth with L     slope {slope['slope']:.3f} from L {lengths[0]} to {lengths[-1]}")
    if args.out:
        with atomic_path(args.out) as path:
            path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
