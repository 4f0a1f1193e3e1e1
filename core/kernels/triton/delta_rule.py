"""The delta rule with no decay, one per head or one per key channel, by Triton: a differentiable operator."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from longseq.core.kernels.triton._delta_backward import gradients
from longseq.core.kernels.triton._delta_plan import CHUNK, call_of, forms_of, outputs
from longseq.core.kernels.triton.common import plain, rows
from longseq.core.ops import _native


@torch.library.custom_op("longseq::triton_delta_rule", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = call_of(rows(q), rows(k), rows(v), beta.contiguous(), plain(log_decay), scale)
    forms = forms_of(call)
    return *outputs(call, forms, plain(initial_state)), forms.inverse


@_attend.register_fake
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, initial_state: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, heads, value = v.shape
    last = v.new_empty((batch, heads, q.shape[3], value), dtype=torch.float32)
    low = all(x.dtype == torch.bfloat16 for x in (q, k, v)) and not triton.knobs.runtime.interpret
    inverse = v.new_empty(
        (batch, heads, -(-length // CHUNK), CHUNK, CHUNK), dtype=torch.bfloat16 if low else torch.float32
    )
    return v.new_empty(v.shape), last, inverse


@torch.library.custom_op("longseq::triton_delta_rule_backward", mutates_args=())
def _attend_backward(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, inverse: Tensor, scale: float,
) -> list[Tensor]:  # fmt: skip
    call = call_of(rows(q), rows(k), rows(v), beta.contiguous(), plain(log_decay), scale)
    forms = forms_of(call, inverse.contiguous())
    found = gradients(call, forms, rows(do), plain(initial_state), plain(dlast))
    dfirst = None if initial_state is None else found.state.contiguous()
    return [
        v.new_empty((0,)) if t is None else t
        for t in (found.q, found.k, found.v, found.beta, found.log_decay, dfirst)
    ]


@_attend_backward.register_fake
def _attend_backward_fake(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None,
    initial_state: Tensor | None, inverse: Tensor, scale: float,
) -> list[Tensor]:  # fmt: skip
    tensors = (q, k, v, beta, log_decay, initial_state)
    return [v.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in tensors]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlast: Tensor | None, _: None) -> tuple[Any, ...]:
    do = torch.zeros_like(ctx.saved_tensors[2]) if do is None else do
    grads = _call_backward(do, dlast, *ctx.saved_tensors, ctx.scale)
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None)


_attend.register_autograd(_backward, setup_context=_setup)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, range(6), info, in_dims, args), (0, 0, 0)


def _backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call_backward, range(9), info, in_dims, args), (0,) * 6


_call_backward = _native.transformable(_attend_backward, _backward_vmap)
_call = _native.transformable(_attend, _vmap, _setup, _backward)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs S_t = D_t S_{t-1} + β_t k_t (v_t - (D_t S_{t-1})ᵀ k_t)ᵀ, o_t = scale · S_tᵀ q_t.

    Args:
        q: queries (B, L, G, K); bfloat16, float16 or float32, as k and v.
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G.
        beta: (B, L, H).
        log_decay: (B, L, H) or (B, L, G, K), -inf at resets; None for no decay.
        scale: factor of the output.
        initial_state: (B, H, K, V) or None.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32.
    """
    decay = None if log_decay is None else log_decay.float()
    state = None if initial_state is None else initial_state.float()
    out, last, _ = _call(q, k, v, beta.float(), decay, state, float(scale))
    return out, last
