"""Checks of the Triton kernels: SSD, linear attention with every kind of decay, and the mLSTM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from longseq.bench.gpu.agreement import TF32, TOLERANCE, Case, Tensors
from longseq.core.ops.linear_attention import linear_attention, linear_attention_reference
from longseq.core.ops.mlstm import mlstm, mlstm_reference
from longseq.core.ops.ssd import ssd, ssd_reference

LOW = ("q", "k", "v", "x", "B", "C", "z")
"""Activations: what is bfloat16 or float16 in a model of that precision."""
# dtype of the activations, whether TF32 is allowed, tolerance.
PRECISIONS = (
    (torch.float32, False, TOLERANCE[torch.float32]),
    (torch.float32, True, TF32),
    (torch.bfloat16, False, TOLERANCE[torch.bfloat16]),
    (torch.float16, False, TOLERANCE[torch.float16]),
)


def packed(batch: int, length: int) -> torch.Tensor:
    """Returns resets of several sequences per row, none at position 0."""
    resets = torch.rand(batch, length) < 4 / length
    resets[:, 0] = False
    return resets


def attention_inputs(
    batch: int, length: int, heads: int, key: int, value: int, decay: str
) -> Tensors:
    """Returns arguments of ``linear_attention``: two heads of values share a key."""
    groups = heads // 2
    made: Tensors = {name: torch.randn(batch, length, groups, key) for name in ("q", "k")}
    made |= {
        "v": torch.randn(batch, length, heads, value),
        "initial_state": torch.randn(batch, heads, key, value),
        "resets": packed(batch, length),
    }
    if decay != "none":
        shape = (batch, length, heads) if decay == "head" else (batch, length, groups, key)
        made["log_decay"] = torch.nn.functional.logsigmoid(torch.randn(shape) + 2) / 4
    return made


def ssd_inputs(batch: int, length: int, heads: int, key: int, value: int) -> Tensors:
    """Returns arguments of ``ssd``, with every optional one."""
    groups = heads // 2
    return {
        "x": torch.randn(batch, length, heads, value),
        "dt": torch.randn(batch, length, heads) - 2,
        "A": -torch.rand(heads) - 0.1,
        "B": torch.randn(batch, length, groups, key),
        "C": torch.randn(batch, length, groups, key),
        "D": torch.randn(heads),
        "z": torch.randn(batch, length, heads, value),
        "dt_bias": torch.randn(heads),
        "initial_states": torch.randn(batch, heads, value, key),
        "resets": packed(batch, length),
    }


def mlstm_inputs(batch: int, length: int, heads: int, key: int, value: int) -> Tensors:
    """Returns arguments of ``mlstm``; its input gates keep the divisor at its floor.

    There the output is linear in its arguments. Dividing by a difference that happens to vanish
    would amplify any rounding, ours and the reference's.
    """
    per_head = (batch, length, heads)
    return {
        "q": torch.randn(*per_head, key),
        "k": torch.randn(*per_head, key),
        "v": torch.randn(*per_head, value),
        "i": torch.randn(per_head) - 8,
        "f": torch.randn(per_head) + 2,
        "c": 0.3 * torch.randn(batch, heads, key, value),
        "n": 0.3 * torch.randn(batch, heads, key),
        "m": torch.randn(batch, heads) - 7,
        "resets": packed(batch, length),
    }


def memory(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Returns ``mlstm`` with its state as separate arguments and outputs; m's own is left out, as
    it is a running maximum of the gates and no product."""

    def call(**t: Any) -> Any:
        state = (t.pop("c"), t.pop("n"), t.pop("m"))
        y, (c, n, _) = function(**t, initial_state=state, **options)
        return y, c, n

    return call


def cases(
    length: int = 300, widths: tuple[tuple[int, int], ...] = ((64, 64), (128, 40))
) -> Iterator[Case]:
    """Yields every check, made when it is asked for.

    Args:
        length: positions; no multiple of a chunk.
        widths: of keys and values.
    """
    for dtype, tf32, tolerance in PRECISIONS:
        about = f"{str(dtype)[6:]}{', TF32 allowed' if tf32 else ''}"
        rest: dict[str, Any] = {"low": LOW, "dtype": dtype, "tf32": tf32}
        for key, value in widths:
            sizes = f"L {length} K {key} V {value} {about}"
            for decay in ("none", "head", "channel"):
                yield Case(
                    f"linear_attention, decay: {decay}, {sizes}",
                    lambda **t: linear_attention(**t, backend="triton"),
                    linear_attention_reference,
                    attention_inputs(2, length, 4, key, value, decay),
                    tolerance,
                    **rest,
                )
            yield Case(
                f"ssd {sizes}",
                lambda **t: ssd(**t, dt_softplus=True, backend="triton"),
                lambda **t: ssd_reference(**t, dt_softplus=True),
                ssd_inputs(2, length, 4, key, value),
                tolerance,
                **rest,
            )
            yield Case(
                f"mlstm {sizes}",
                memory(mlstm, backend="triton"),
                memory(mlstm_reference),
                mlstm_inputs(2, length, 4, key, value),
                tolerance,
                **rest,
            )
