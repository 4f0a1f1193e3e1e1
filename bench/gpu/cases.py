"""What is timed: the selective scan, SSD, GLA, simple GLA, retention and the mLSTM, each beside its
peers.

Least work of the chunked operators, with chunks of T = 64: a position of a head writes the state (2
K V operations) and reads it (2 K V), and inside its chunk meets T / 2 others (T K for the scores, T
V for the values). The backward pass counts as twice that. Activations are bfloat16 and move once;
with the backward pass three times (read, gradient, read again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from longseq.bench.gpu.timing import Timed, Work
from longseq.bench.peers import load_function
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.ssd import ssd

CHUNK = 64
SCANS = ((8, 2048, 1536), (8, 8192, 1536), (1, 8192, 1536), (1, 65536, 1536), (1, 262144, 1536))
LONG_SCANS = ((1, 1048576, 256), (1, 1048576, 1536))
CHUNKED = ((8, 2048, 16), (1, 16384, 16))
"""Batch, length, and width or heads."""
BF16 = torch.bfloat16


def peer(
    function: Callable[..., Any] | str, leaves: dict[str, Tensor], **options: Any
) -> tuple[Callable[..., Tensor], dict[str, Tensor]] | str:
    """Returns a peer as ``Timed`` wants it: a function of its leaves that returns the output
    alone."""
    if isinstance(function, str):
        return function

    def call(**t: Any) -> Tensor:
        out = function(**t, **options)
        return out[0] if isinstance(out, tuple) else out

    return call, leaves


def chunked_work(
    batch: int, length: int, heads: int, key: int, value: int, groups: int
) -> tuple[Work, Work]:
    """Returns the least work of a chunked operator, forward and with its backward."""
    flops = batch * length * heads * (4.0 * key * value + CHUNK * (key + value))
    moved = 2.0 * batch * length * (2 * groups * key + 2 * heads * value)
    return Work(bytes=moved, flops=flops), Work(bytes=3 * moved, flops=3 * flops)


def scan_case(
    batch: int, length: int, width: int, dtype: torch.dtype, device: torch.device
) -> Timed:
    """Returns the selective scan with N = 16, gated, in Mamba's own arguments."""
    states = 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    t = {name: normal(batch, length, width) for name in ("u", "delta", "z")}
    t["delta"] -= 3
    t |= {name: normal(batch, length, states) for name in ("B", "C")}
    t["A"] = -2 * torch.rand(width, states, device=device)
    t |= {name: torch.randn(width, device=device) for name in ("D", "delta_bias")}
    fn = load_function("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    flat = (
        {}
        if isinstance(fn, str)
        else {k: v.transpose(1, 2).contiguous() if v.dim() == 3 else v for k, v in t.items()}
    )
    exps, rows, maps = float(states * batch * length * width), t["u"].nbytes, t["B"].nbytes
    return Timed(
        "scan",
        batch,
        length,
        f"D {width} N {states} {str(dtype)[6:]}",
        lambda **t: selective_scan(**t, delta_softplus=True, backend="cuda")[0],
        {"mamba-ssm": peer(fn, flat, delta_softplus=True)},
        t,
        Work(exps, 4 * rows + 2 * maps),
        Work(2 * exps, 15 * rows + 6 * maps),
    )


def _heads(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device, dtype=BF16)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    """Returns causal softmax attention over the same heads, which does quadratic work."""
    leaves = {
        name: x.transpose(1, 2).contiguous()
        for name, x in zip(("query", "key", "value"), (q, k, v))
    }
    return lambda **t: scaled_dot_product_attention(**t, is_causal=True), leaves


def ssd_case(batch: int, length: int, heads: int, device: torch.device) -> Timed:
    """Returns Mamba-2's scan: heads of 64 channels, 128 states, one group."""
    key, value = 128, 64
    t = {
        "x": _heads(device, batch, length, heads, value),
        "dt": _heads(device, batch, length, heads) - 3,
        "A": -torch.rand(heads, device=device) - 0.1,
        "B": _heads(device, batch, length, 1, key),
        "C": _heads(device, batch, length, 1, key),
        "D": torch.randn(heads, device=device),
        "dt_bias": torch.randn(heads, device=device),
    }
    q = _heads(device, batch, length, heads, value)
    return Timed(
        "ssd",
        batch,
        length,
        f"H {heads} P {value} N {key} bf16",
        lambda **t: ssd(**t, dt_softplus=True, backend="triton")[0],
        {
            "mamba-ssm": peer(
                load_function("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
                t,
                chunk_size=256,
                dt_softplus=True,
            ),
            "SDPA": _attention(q, q, t["x"]),
        },
        t,
        *chunked_work(batch, length, heads, key, value, 1),
    )


def attention_cases(batch: int, length: int, heads: int, device: torch.device) -> Iterator[Timed]:
    """Yields GLA, simple GLA and retention with heads of 64 channels, beside fla's chunk
    kernels."""
    key = value = 64
    q, k, v = (_heads(device, batch, length, heads, key) for _ in range(3))
    g = logsigmoid(torch.randn(batch, length, heads, key, device=device) + 2) / 4
    h = logsigmoid(torch.randn(batch, length, heads, device=device) + 2) / 4
    ours = {"q": q, "k": k, "v": v}
    steps = torch.log1p(-torch.exp2(-5.0 - torch.arange(heads, device=device, dtype=torch.float32)))
    work = chunked_work(batch, length, heads, key, value, heads)
    families: tuple[tuple[str, dict[str, Tensor], dict[str, Tensor], tuple[str, str]], ...] = (
        ("gla", {"log_decay": g}, {"g": g}, ("fla.ops.gla", "chunk_gla")),
        ("simple gla", {"log_decay": h}, {"g": h}, ("fla.ops.simple_gla", "chunk_simple_gla")),
        ("retention", {}, {}, ("fla.ops.retention", "chunk_retention")),
    )
    for family, own, theirs, where in families:

        def call(family: str = family, **t: Any) -> Tensor:
            if family == "retention":
                t["log_decay"] = steps.expand(batch, length, -1)
            return linear_attention(**t, backend="triton")[0]

        peers = {"fla": peer(load_function(*where), ours | theirs), "SDPA": _attention(q, k, v)}
        yield Timed(
            family, batch, length, f"H {heads} K {key} bf16", call, peers, ours | own, *work
        )


def mlstm_case(batch: int, length: int, heads: int, device: torch.device) -> Timed:
    """Returns the mLSTM with a quarter of the heads, of 128 keys and 256 values."""
    heads, key, value = max(heads // 4, 1), 128, 256
    t = {name: _heads(device, batch, length, heads, key) for name in ("q", "k")}
    t |= {"v": _heads(device, batch, length, heads, value)}
    t |= {
        "i": _heads(device, batch, length, heads) - 3,
        "f": _heads(device, batch, length, heads) + 3,
    }
    fn = load_function("mlstm_kernels.torch.chunkwise.triton_xl_chunk", "mlstm_chunkwise__xl_chunk")
    flat = {name: x.transpose(1, 2).contiguous() for name, x in t.items()}
    return Timed(
        "mlstm",
        batch,
        length,
        f"H {heads} K {key} V {value} bf16",
        lambda **t: mlstm(**t, backend="triton")[0],
        {"mlstm-kernels": peer(fn, flat), "SDPA": _attention(t["q"], t["k"], t["v"])},
        t,
        *chunked_work(batch, length, heads, key, value, heads),
    )


def cases(device: torch.device) -> Iterator[Timed]:
    """Yields what is timed, made when it is asked for: what has a target first, the largest
    last."""
    for size in SCANS:
        yield scan_case(*size, BF16, device)
    for chunked in CHUNKED:
        yield ssd_case(*chunked, device)
        yield from attention_cases(*chunked, device)
        yield mlstm_case(*chunked, device)
    for size in LONG_SCANS:
        yield scan_case(*size, BF16, device)
    for size in SCANS:
        yield scan_case(*size, torch.float32, device)
