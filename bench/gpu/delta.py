"""The delta rule on the GPU: its checks, its timings beside flash-linear-attention's, and their
target.

Least work: a position of a head reads the state by its key and by its query and writes it (6 K V
operations), and inside its chunk of T = 64 meets T / 2 others: products of keys and of queries with
keys (2 T K), and what those do to values (2 T V).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from longseq.bench import peers
from longseq.bench.gpu import chunked
from longseq.bench.gpu.agreement import Case, Tensors
from longseq.bench.gpu.cases import CHUNK, CHUNKED, peer
from longseq.bench.gpu.timing import Timed, Work
from longseq.core.ops.delta_rule import delta_rule, delta_rule_reference

DECAYS = {"none": "delta rule", "head": "gated delta rule", "channel": "kda"}
"""The operator's families by their decay."""
PEERS = {
    "none": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "head": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
    "channel": ("fla.ops.kda", "chunk_kda"),
}
WIDTHS = (64, 128)
"""Of keys and values, in what is timed."""


def inputs(batch: int, length: int, heads: int, key: int, value: int, decay: str) -> Tensors:
    """Returns arguments of ``delta_rule``: two heads of values share a key, of norm 1; β goes up to
    2."""
    made = chunked.attention_inputs(batch, length, heads, key, value, decay)
    assert made["k"] is not None
    made["k"] = normalize(made["k"], dim=-1)
    return made | {"beta": 2 * torch.randn(batch, length, heads).sigmoid()}


def checks(
    length: int = 300, widths: tuple[tuple[int, int], ...] = ((64, 64), (128, 40))
) -> Iterator[Case]:
    """Yields every check, made when it is asked for.

    Args:
        length: positions; no multiple of a chunk.
        widths: of keys and values.
    """
    for dtype, tf32, tolerance in chunked.PRECISIONS:
        about = f"{str(dtype)[6:]}{', TF32 allowed' if tf32 else ''}"
        for key, value in widths:
            for decay in DECAYS:
                yield Case(
                    f"delta_rule, decay: {decay}, L {length} K {key} V {value} {about}",
                    lambda **t: delta_rule(**t, backend="triton"),
                    delta_rule_reference,
                    inputs(2, length, 4, key, value, decay),
                    tolerance,
                    low=chunked.LOW,
                    dtype=dtype,
                    tf32=tf32,
                )


def work(batch: int, length: int, heads: int, width: int, decay: str) -> tuple[Work, Work]:
    """Returns the least work, forward and with the backward pass, which counts as twice the
    forward."""
    flops = batch * length * heads * (6.0 * width * width + 4 * CHUNK * width)
    # Of a float32 decay, in units of bfloat16.
    numbers = {"none": 0, "head": 2, "channel": 2 * width}[decay]
    moved = 2.0 * batch * length * heads * (4 * width + 1 + numbers)
    return Work(bytes=moved, flops=flops), Work(bytes=3 * moved, flops=3 * flops)


def timings(
    batch: int, length: int, heads: int, width: int, device: torch.device
) -> Iterator[Timed]:
    """Yields the delta rule without a decay, with one per head and with one per channel, beside
    fla's."""
    per_head, wide = (batch, length, heads), (batch, length, heads, width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    shared = {
        "q": normal(*wide),
        "k": normalize(normal(*wide).float(), dim=-1).to(torch.bfloat16),
        "v": normal(*wide),
        "beta": normal(*per_head).sigmoid(),
    }
    for decay, family in DECAYS.items():
        g: dict[str, Tensor] = {}
        if decay != "none":
            shape = per_head if decay == "head" else wide
            g["g"] = logsigmoid(torch.randn(shape, device=device) + 2) / 4
        ours = {{"g": "log_decay"}.get(name, name): x for name, x in (shared | g).items()}
        yield Timed(
            family,
            batch,
            length,
            f"H {heads} K {width} V {width} bf16",
            lambda **t: delta_rule(**t, backend="triton")[0],
            {"fla": peer(peers.load_function(*PEERS[decay]), shared | g)},
            ours,
            *work(batch, length, heads, width, decay),
        )


def cases(device: torch.device) -> Iterator[Timed]:
    """Yields what is timed, made when it is asked for."""
    for batch, length, heads in CHUNKED:
        for width in WIDTHS:
            yield from timings(batch, length, heads, width, device)
