"""Builds, checks and times every CUDA kernel on this machine's GPU: ``make test-gpu``.

    python benchmarks/cuda_check.py [--json FILE] [--no-times] [--seconds 360]

Checks against float64 references on the CPU, on fresh inputs (the seed is printed), with free memory full of
NaN, three times each with bit-identical results. Then times the selective scan, and mamba-ssm's where that
is installed. Bounds count one exponential per (row, position, channel, state), two with the backward, at 16 a
clock and multiprocessor, and each tensor once at the rate of a large copy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.ops import backends, causal_conv1d, linear_scan, selective_scan, slstm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
Result = dict[str, Any]


def poison() -> None:
    """Leaves NaN in the allocator's free memory, which the next outputs are made of."""
    blocks = [torch.full((size,), torch.nan, device="cuda") for size in (1 << 14, 1 << 18, 1 << 22, 1 << 26)]
    del blocks


def worst(actual: list[Tensor], exact: list[Tensor]) -> float:
    """Returns the largest error, relative to each tensor's largest value; infinity for what is not finite."""
    errors = []
    for a, e in zip(actual, exact):
        error = (a.detach().cpu().to(e.dtype) - e).abs().max() / e.abs().max().clamp_min(1e-30)
        errors.append(float(error) if bool(torch.isfinite(error)) else float("inf"))
    return max(errors)


def compare(
    name: str,
    fast: Callable[..., Any],
    exact: Callable[..., Any],
    tensors: dict[str, Tensor | None],
    tolerance: float,
) -> Result:
    """Runs an operator with all gradients three times on the GPU and once in float64 on the CPU."""

    def run(function: Callable[..., Any], place: Callable[[Tensor], Tensor]) -> list[Tensor]:
        leaves = {
            k: t if t is None else place(t).detach().requires_grad_(t.is_floating_point() or t.is_complex())
            for k, t in tensors.items()
        }
        outputs = [t for t in function(**leaves) if t is not None]
        weights = [place(w) for w in seeds[: len(outputs)]]
        inputs = [t for t in leaves.values() if t is not None and t.requires_grad]
        pairs = [w.reshape(-1)[: o.numel()].view(o.shape).to(o.dtype) for w, o in zip(weights, outputs)]
        return [*[o.detach() for o in outputs], *torch.autograd.grad(outputs, inputs, pairs)]

    largest = max(t.numel() for t in tensors.values() if t is not None) * 4
    seeds = [torch.randn(largest).bfloat16().float() for _ in range(2)]
    wide = {torch.complex64: torch.complex128}

    def widen(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.bool else tensor.to(wide.get(tensor.dtype, torch.float64))

    reference = run(exact, widen)
    runs = []
    for _ in range(3):
        poison()
        runs.append(run(fast, lambda t: t.cuda()))
    same = all(torch.equal(a, b) for again in runs[1:] for a, b in zip(runs[0], again))
    error = worst(runs[0], reference)
    return {
        "check": name,
        "error": error,
        "tolerance": tolerance,
        "same": same,
        "ok": same and error <= tolerance,
    }


def scan_inputs(
    batch: int,
    length: int,
    width: int,
    states: int,
    groups: int,
    dtype: torch.dtype,
    complex_: bool,
    resets: bool,
) -> dict[str, Tensor | None]:
    kind = torch.complex64 if complex_ else torch.float32
    A = -torch.rand(width, states) * 2
    maps = [torch.randn(batch, length, groups, states, dtype=kind) for _ in range(2)]
    return {
        "u": torch.randn(batch, length, width).to(dtype),
        "delta": (torch.randn(batch, length, width) - 3).to(dtype),
        "A": torch.complex(A, 3 * torch.randn(width, states)) if complex_ else A,
        "B": maps[0] if complex_ else maps[0].to(dtype), "C": maps[1] if complex_ else maps[1].to(dtype),
        "D": torch.randn(width), "z": torch.randn(batch, length, width).to(dtype),
        "delta_bias": torch.randn(width) * 0.1,
        "initial_state": torch.randn(batch, width, states, dtype=kind),
        "resets": torch.rand(batch, length) < 0.01 if resets else None,
    }  # fmt: skip


def checks() -> list[Result]:
    """Agreement of every kernel with float64."""
    found = []
    shapes = [
        (2, 1000, 70, 16, 1, torch.float32, False, True), (1, 6000, 6, 16, 1, torch.float32, False, False),
        (1, 6000, 6, 16, 1, torch.float32, False, True), (16, 257, 1024, 16, 2, torch.float32, False, True),
        (2, 333, 40, 64, 1, torch.float32, False, False), (2, 500, 33, 8, 1, torch.float32, True, True),
        (1, 5000, 4, 4, 1, torch.float32, True, False), (2, 100, 20, 3, 1, torch.float32, False, False),
        (2, 1, 64, 16, 1, torch.float32, False, False), (2, 700, 96, 16, 1, torch.bfloat16, False, True),
        (2, 300, 64, 16, 1, torch.float16, False, False),
    ]  # fmt: skip
    for shape in shapes:

        def fast(**t: Any) -> Any:
            return selective_scan.selective_scan(**t, delta_softplus=True, backend="cuda")

        def exact(**t: Any) -> Any:
            return selective_scan.selective_scan_reference(**t, delta_softplus=True)

        name = "selective_scan " + " ".join(str(x).replace("torch.", "") for x in shape)
        found.append(compare(name, fast, exact, scan_inputs(*shape), TOLERANCE[shape[5]]))
    for taps, dtype, past in (
        (4, torch.float32, True),
        (1, torch.float32, False),
        (32, torch.float32, True),
        (4, torch.bfloat16, True),
    ):
        tensors: dict[str, Tensor | None] = {
            "x": torch.randn(2, 777, 200).to(dtype), "weight": torch.randn(200, taps),
            "bias": torch.randn(200),
            "initial_state": torch.randn(2, taps - 1, 200).to(dtype) if past else None,
            "resets": torch.rand(2, 777) < 0.02 if past else None,
        }  # fmt: skip
        found.append(
            compare(
                f"causal_conv1d {taps} {dtype}",
                lambda **t: causal_conv1d.causal_conv1d(**t, activation="silu", backend="cuda")[:1],
                lambda **t: (causal_conv1d.causal_conv1d_reference(**t, activation="silu"),),
                tensors, TOLERANCE[dtype],
            )
        )  # fmt: skip
    for shape, dtype in (
        ((2, 1000, 70), torch.float32),
        ((1, 6000, 5), torch.float32),
        ((1, 6000, 5), torch.complex64),
    ):
        a = (
            torch.rand(shape)
            if dtype == torch.float32
            else torch.polar(torch.rand(shape), torch.randn(shape))
        )
        tensors = {
            "a": a,
            "b": torch.randn(shape, dtype=dtype),
            "initial_state": torch.randn(shape[0], shape[2], dtype=dtype),
        }
        found.append(
            compare(
                f"linear_scan {shape} {dtype}", lambda **t: linear_scan.linear_scan(**t, backend="cuda")[:1],
                lambda **t: (linear_scan.linear_scan_reference(**t),), tensors, 1e-5,
            )
        )  # fmt: skip
    for batch, length, heads, width in ((3, 200, 4, 64), (1, 50, 2, 192), (40, 30, 4, 24)):
        tensors = {
            "gates": torch.randn(batch, length, 4, heads, width),
            "recurrent": torch.randn(heads, 4 * width, width) / width**0.5,
            "resets": torch.rand(batch, length) < 0.02,
        }
        found.append(
            compare(
                f"slstm {batch} {length} {heads} {width}", lambda **t: slstm.slstm(**t)[:1],
                lambda **t: slstm.slstm_reference(**t)[:1], tensors, 1e-5,
            )
        )  # fmt: skip
    return found


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the median time of a call on the GPU, after warming up, over about half a second."""
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begin < 0.5 and len(times) < 50):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return sorted(times)[len(times) // 2]


def memory_rate() -> float:
    """Returns the bytes a second of a large copy, read and written."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def exponential_rate(clock: float) -> float:
    """Returns exponentials a second: 16 a clock and multiprocessor."""
    return 16 * torch.cuda.get_device_properties(0).multi_processor_count * clock


def time_case(
    batch: int, length: int, width: int, dtype: torch.dtype, rates: tuple[float, float], peer: Any
) -> list[Result]:
    """Times the selective scan at one size, forward and with its backward; the peer, if any, beside it."""
    some = scan_inputs(1, 1, width, 16, 1, dtype, False, False)
    t = {name: one.cuda() for name in ("A", "D", "delta_bias") if (one := some[name]) is not None}
    for name in ("u", "delta", "z"):
        t[name] = torch.randn(batch, length, width, device="cuda", dtype=dtype) - 3 * (name == "delta")
    t["B"], t["C"] = (torch.randn(batch, length, 16, device="cuda", dtype=dtype) for _ in range(2))
    flat = {}
    if peer is not None:
        flat = {k: v.transpose(1, 2).contiguous() if v.dim() == 3 else v for k, v in t.items()}

    def ours(tensors: dict[str, Tensor]) -> Tensor:
        return selective_scan.selective_scan(**tensors, delta_softplus=True, backend="cuda")[0]

    def theirs(tensors: dict[str, Tensor]) -> Tensor:
        return peer(**tensors, delta_softplus=True)

    def seconds(function: Callable[..., Tensor], tensors: dict[str, Tensor], backward: bool) -> float | None:
        leaves = {k: v.detach().requires_grad_(backward) for k, v in tensors.items()}

        def call() -> None:
            y = function(leaves)
            if backward:
                torch.autograd.grad(y, list(leaves.values()), y)

        try:
            return seconds_of(call)
        except torch.OutOfMemoryError:
            return None

    found = []
    for backward in (False, True):
        exps = 16 * batch * length * width * (2 if backward else 1)
        moved = (15 if backward else 4) * t["u"].nbytes + (6 if backward else 2) * t["B"].nbytes
        own = seconds(ours, t, backward)
        row: Result = {"batch": batch, "length": length, "width": width, "dtype": str(dtype), "seconds": own}
        row["what"] = "both" if backward else "forward"
        if own is not None:
            bound = max(exps / rates[0], moved / rates[1])
            row |= {"exponentials_per_second": exps / own, "bytes_per_second": moved / own}
            row["percent_of_bound"] = 100 * bound / own
        if peer is not None:
            row["mamba_ssm_seconds"] = seconds(theirs, flat, backward)
        found.append(row)
        show(row)
    return found


def times(clock: float, deadline: float) -> list[Result]:
    """Times the selective scan over lengths, with mamba-ssm beside it where it is installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as peer
    except ImportError:
        peer = None
    rates = exponential_rate(clock), memory_rate()
    print(
        f"exponentials {rates[0] / 1e12:.2f} T/s at {clock / 1e9:.3f} GHz, memory {rates[1] / 1e12:.2f} TB/s"
    )
    sizes = [(8, 2048, 1536), (8, 8192, 1536), (1, 8192, 1536), (1, 65536, 1536), (1, 262144, 1536)]
    sizes += [(1, 1048576, 256), (1, 1048576, 1536)]
    found: list[Result] = []
    for size in sizes:
        for dtype in (torch.bfloat16, torch.float32):
            if time.perf_counter() > deadline:
                print(f"  out of time: {size} and longer are not measured")
                return found
            found += time_case(*size, dtype, rates, peer)
            torch.cuda.empty_cache()
    return found


def show(row: Result) -> None:
    head = f"  B {row['batch']:<3} L {row['length']:<8} D {row['width']:<5} {row['dtype'][6:]:<9}"
    head += f"{row['what']:<8}"
    own, beside = row["seconds"], "mamba-ssm not measured"
    if row.get("mamba_ssm_seconds") is not None:
        beside = f"mamba-ssm {1e3 * row['mamba_ssm_seconds']:.3f} ms"
        if own is not None:
            beside += f", {row['mamba_ssm_seconds'] / own:.2f} times ours"
    if own is None:
        print(f"{head} out of memory; {beside}")
        return
    print(
        f"{head} {1e3 * own:9.3f} ms {row['exponentials_per_second'] / 1e12:6.3f} Texp/s "
        f"{row['bytes_per_second'] / 1e12:6.3f} TB/s {row['percent_of_bound']:5.1f} % of bound; {beside}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--no-times", action="store_true", help="check only")
    parser.add_argument("--seconds", type=float, default=360, help="start no further timing after this long")
    parser.add_argument(
        "--clock", type=float, default=1.755e9, help="multiprocessor clock in Hz, for the bound"
    )
    options = parser.parse_args()
    begin = time.perf_counter()
    available, note = nvrtc.describe()
    if not available:
        print(f"The CUDA kernels cannot run here: {note}", file=sys.stderr)
        return 2
    seed = torch.seed() % (1 << 31)
    torch.manual_seed(seed)
    device = torch.cuda.get_device_name(0)
    print(f"{device}, torch {torch.__version__}, NVRTC {nvrtc.version()}, seed {seed}")
    for name, there, why in backends.describe():
        print(f"  {name}: {'available' if there else 'no'} ({why})")
    found = checks()
    for row in found:
        verdict, differ = "ok " if row["ok"] else "BAD", "" if row["same"] else "; runs differ"
        print(f"  {verdict} {row['error']:.1e} (at most {row['tolerance']:.0e}) {row['check']}{differ}")
    print(f"built and checked in {time.perf_counter() - begin:.0f} s")
    timed = [] if options.no_times else times(options.clock, begin + options.seconds)
    if options.json:
        content = {"device": device, "torch": torch.__version__, "nvrtc": nvrtc.version(), "seed": seed}
        options.json.write_text(json.dumps({**content, "checks": found, "times": timed}, indent=1) + "\n")
    bad = [row["check"] for row in found if not row["ok"]]
    print(
        f"{len(found) - len(bad)} of {len(found)} checks passed, {time.perf_counter() - begin:.0f} s in all"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
