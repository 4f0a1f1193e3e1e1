"""Context parallelism measured: ``python -m longseq.bench.context --ranks 1,2,4``; and its plan on
paper."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from longseq.core import Backbone
from longseq.core.parallel import ContextParallel


def state_bytes(stack: Backbone, batch: int) -> int:
    """Returns the bytes of the states that a rank passes on in a forward pass.

    Args:
        stack: the model.
        batch: number of sequences.
    """
    states = stack.init_states(batch)
    return sum(one.numel() * one.element_size() for state in states for one in state.values())


def share_at_work(layers: int, ranks: int, sequences: int = 1) -> float:
    """Returns the share of the ranks that work, N·M / (N·M + R - 1).

    Args:
        layers: N, all alike.
        ranks: R.
        sequences: M, how many pass one after the other before the gradients meet.
    """
    turns = layers * sequences
    return turns / (turns + ranks - 1)


def measure(rank: int, size: int, store: str, args: argparse.Namespace) -> None:
    """Times training steps of one rank; rank 0 prints."""
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
    torch.manual_seed(0)
    stack = Backbone(args.width, args.layers, args.mixer)
    x = torch.randn(args.batch, args.length, args.width)
    context = ContextParallel(recompute=args.recompute)
    part = context.split(x).clone().requires_grad_()
    walls, works, kept = [], [], 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {one.untyped_storage().data_ptr() for one in stack.parameters()}
    for _ in range(args.steps + 1):
        stack.zero_grad()
        sent = context.sent_bytes
        dist.barrier()
        begin, busy = time.perf_counter(), time.process_time()
        held: dict[int, int] = {}
        with context(stack), saved_tensors_hooks(keep, lambda tensor: tensor):
            y = stack(part)[0]
        kept = sum(size for where, size in held.items() if where not in weights)
        context.mean(y.square().sum(), part.shape[1]).backward()
        context.reduce_gradients(stack)
        dist.barrier()
        walls.append(time.perf_counter() - begin)
        works.append(time.process_time() - busy)
        sent = context.sent_bytes - sent
    work = torch.tensor([min(works[1:]), float(sent)], dtype=torch.float64)
    dist.all_reduce(work)
    if rank == 0:
        paper = 2 * (size - 1) * state_bytes(stack, args.batch)  # states and their gradients
        print(
            f"{size:5d} {min(walls[1:]):9.2f} {float(work[0]):9.2f} "
            f"{share_at_work(args.layers, size):9.0%} {kept / 1e6:9.0f} {int(work[1]):12,d} "
            f"{paper:12,d}",
            flush=True,
        )
    dist.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the ranks on this machine, one table row for each number of them."""
    parser = argparse.ArgumentParser(prog="python -m longseq.bench.context", description=__doc__)
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, 1,2,4 (1,2)")
    parser.add_argument("--mixer", default="mamba")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each rank (1)")
    parser.add_argument("--steps", type=int, default=3, help="timed; the fastest counts (3)")
    parser.add_argument("--recompute", action="store_true", help="keep the mixers' inputs only")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank is not None:
        measure(args.rank, int(args.ranks), args.store, args)
        return 0
    print(
        f"{args.layers} layers of {args.mixer}, width {args.width}, {args.batch} × {args.length:,} "
        f"positions, float32, a training step without the optimiser\n"
        f"{'ranks':>5} {'wall, s':>9} {'CPU, s':>9} {'at work':>9} {'kept, MB':>9} "
        f"{'bytes sent':>12} {'on paper':>12}",
        flush=True,
    )
    given = list(sys.argv[1:] if argv is None else argv)
    for size in map(int, args.ranks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            extra = ["--ranks", str(size), "--store", str(Path(folder) / "store")]
            environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
            command = [sys.executable, "-m", "longseq.bench.context", *given, *extra]
            running = [
                subprocess.Popen([*command, "--rank", str(rank)], env=environment)
                for rank in range(size)
            ]
            if any(one.wait() for one in running):
                return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
