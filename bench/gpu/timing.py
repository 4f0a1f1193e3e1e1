"""Times calls on a GPU, and sets them against bounds that are measured on the same GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longseq.bench.gpu.agreement import Result
from longseq.bench.peers import in_short


@dataclass(frozen=True)
class Rates:
    """What the GPU does per second.

    Attributes:
        exponentials: single-precision ones.
        memory: bytes of a large copy, read and written.
        products: floating-point operations of a large product of bfloat16 matrices.
    """

    exponentials: float
    memory: float
    products: float


@dataclass(frozen=True)
class Work:
    """What a call cannot do without.

    Attributes:
        exponentials: how many.
        bytes: of arguments and results, each moved once.
        flops: of matrix products.
    """

    exponentials: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0

    def bound(self, rates: Rates) -> float:
        """Returns the least time: of what takes longest, the others beside it."""
        shares = (
            self.exponentials / rates.exponentials,
            self.bytes / rates.memory,
            self.flops / rates.products,
        )
        return max(shares)


@dataclass(frozen=True)
class Timed:
    """A call to be timed, ours and its peers'.

    Attributes:
        family: as in ``targets``.
        length: L.
        batch: B.
        about: other sizes in words.
        ours: takes ``leaves`` by name, returns the output.
        peers: the same for peers by name; each with its own ``leaves``. A text says why it is not
            there.
        leaves: our arguments.
        forward: work of the forward pass.
        both: of the forward and backward pass.
    """

    family: str
    batch: int
    length: int
    about: str
    ours: Callable[..., Tensor]
    peers: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor]] | str]
    leaves: dict[str, Tensor]
    forward: Work
    both: Work


def seconds_of(call: Callable[[], Any], span: float = 0.4) -> float:
    """Returns the median time of a call on the GPU, after warming up.

    Args:
        call: starts the work.
        span: seconds to spend, about.
    """
    call()
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begin < span and len(times) < 50):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return sorted(times)[len(times) // 2]


def measure_rates(clock: float) -> Rates:
    """Returns what this GPU does: exponentials at 16 a clock and multiprocessor, the others
    measured.

    Args:
        clock: of the multiprocessors, in Hz.
    """
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    memory = 2 * source.nbytes / seconds_of(lambda: target.copy_(source))
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    products = 2 * 8192**3 / seconds_of(lambda: a @ a)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    return Rates(16 * processors * clock, memory, products)


def seconds_of_call(
    function: Callable[..., Tensor],
    leaves: dict[str, Tensor],
    backward: bool,
    clock: Callable[..., float],
) -> float | str:
    """Returns the time of a call, or that there was no memory for it.

    Args:
        function: takes the leaves by name.
        leaves: its arguments.
        backward: whether all gradients are taken too.
        clock: ``seconds_of``.
    """
    leaves = {key: value.detach().requires_grad_(backward) for key, value in leaves.items()}
    wanted = list(leaves.values())

    def call() -> None:
        with torch.set_grad_enabled(backward):
            y = function(**leaves)
            if backward:
                torch.autograd.grad(y, wanted, y)

    try:
        return clock(call)
    except torch.OutOfMemoryError:
        return "out of memory"


def seconds_of_peer(
    peer: tuple[Callable[..., Tensor], dict[str, Tensor]] | str,
    backward: bool,
    clock: Callable[..., float],
) -> float | str:
    """Returns the time of a peer's call, or in words why there is none."""
    if isinstance(peer, str):
        return peer
    try:
        return seconds_of_call(*peer, backward, clock)
    except Exception as error:  # noqa: BLE001 - of any kind: its row says so, and the other rows go on
        return f"fails: {in_short(error)}"


def time_case(case: Timed, rates: Rates, clock: Callable[..., float] = seconds_of) -> list[Result]:
    """Times a case, forward and with its backward, and prints a line for each.

    Args:
        case: what to time.
        rates: for the bound.
        clock: returns the seconds of a call.
    """
    found = []
    for what, work in (("forward", case.forward), ("both", case.both)):
        own = seconds_of_call(case.ours, case.leaves, what == "both", clock)
        row: Result = {
            "family": case.family,
            "batch": case.batch,
            "length": case.length,
            "about": case.about,
            "what": what,
            "seconds": own,
            "peers": {},
        }
        if isinstance(own, float):
            row |= {
                "percent_of_bound": 100 * work.bound(rates) / own,
                "exponentials_per_second": work.exponentials / own,
                "bytes_per_second": work.bytes / own,
                "flops_per_second": work.flops / own,
            }
        row["peers"] = {
            name: seconds_of_peer(peer, what == "both", clock) for name, peer in case.peers.items()
        }
        found.append(row)
        print(line(row), flush=True)
    return found


def line(row: Result) -> str:
    """Returns a timing in words: time, rates, percentage of the bound, and the peers beside it."""
    head = f"  {row['family']:<16} B {row['batch']:<2} L {row['length']:<8}"
    head += f"{row['about']:<26} {row['what']:<8}"
    own = row["seconds"]
    if isinstance(own, float):
        head += f"{1e3 * own:10.3f} ms"
        for key, unit in (
            ("exponentials_per_second", "Texp/s"),
            ("bytes_per_second", "TB/s"),
            ("flops_per_second", "TFLOP/s"),
        ):
            if row[key]:
                head += f" {row[key] / 1e12:7.3f} {unit}"
        head += f" {row['percent_of_bound']:5.1f} % of bound"
    else:
        head += f" {own}"
    for name, seconds in row["peers"].items():
        if isinstance(seconds, str):
            head += f"; {name}: {seconds}"
        else:
            ratio = f", {seconds / own:.2f} times ours" if isinstance(own, float) else ""
            head += f"; {name} {1e3 * seconds:.3f} ms{ratio}"
    return head
