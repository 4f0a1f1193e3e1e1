"""Operators from records: the schema, one list of arguments for all rules, and the rules
themselves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from longseq.core.kernels.custom_op import define, seen_by


class Inputs(NamedTuple):
    x: Tensor
    bias: Tensor | None
    scale: float
    times: int
    negate: bool


class Incoming(NamedTuple):
    dy: Tensor


def _factor(inputs: Inputs) -> float:
    return inputs.scale * inputs.times * (-1 if inputs.negate else 1)


def _forward(inputs: Inputs) -> Tensor:
    y = inputs.x * _factor(inputs)
    return y if inputs.bias is None else y + inputs.bias


def _setup(ctx: Any, output: Tensor, inputs: Inputs) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.options = inputs[2:]


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, bias = ctx.saved_tensors
    dx, dbias = backward(dy, x, bias, *ctx.options)
    return dx, None if bias is None else dbias, None, None, None


def _gradients(into: Incoming, inputs: Inputs) -> list[Tensor]:
    empty = inputs.x.new_empty((0,))
    return [
        torch.empty_like(inputs.x),
        empty if inputs.bias is None else torch.empty_like(inputs.bias),
    ]


def _backward_cpu(into: Incoming, inputs: Inputs) -> list[Tensor]:
    dx, dbias = _gradients(into, inputs)
    dx.copy_(into.dy * _factor(inputs))
    if inputs.bias is not None:
        dbias.copy_(into.dy.sum(0))
    return [dx, dbias]


backward = define(
    "longseq_test::scaled_backward", (Incoming, Inputs), None, _gradients, cpu=_backward_cpu
)
scaled = define(
    "longseq_test::scaled",
    (Inputs,),
    1,
    lambda inputs: torch.empty_like(inputs.x),
    cpu=_forward,
    rows=("x",),
    setup=_setup,
    backward=_backward,
    lower=("x",),
    keep=("bias",),
)


def call(x: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = scaled(x, bias, 0.5, 3, True)
    return y


def leaves() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
    return x.requires_grad_(), torch.ones(3, dtype=torch.float64).requires_grad_()


def test_the_schema_is_that_of_the_records() -> None:
    assert str(scaled.op._opoverload._schema) == (
        "longseq_test::scaled(Tensor x, Tensor? bias, float scale, SymInt times, bool negate) -> "
        "Tensor"
    )
    assert str(backward.op._opoverload._schema).startswith(
        "longseq_test::scaled_backward(Tensor dy, Tensor x, "
    )
    assert str(backward.op._opoverload._schema).endswith("-> Tensor[]")


def test_operator_rules_hold() -> None:
    x, bias = leaves()
    torch.library.opcheck(scaled.op, (x, bias, 0.5, 3, True))
    torch.library.opcheck(scaled.op, (x, None, 0.5, 3, False))
    assert torch.autograd.gradcheck(call, (x, bias))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias), call(x, bias))


def test_transforms() -> None:
    x, bias = leaves()
    expected = torch.autograd.grad(call(x, bias).sum(), (x, bias))
    found = torch.func.grad(lambda x, bias: call(x, bias).sum(), (0, 1))(x, bias)
    torch.testing.assert_close(found, expected)
    rows = torch.stack([x, 2 * x])
    assert torch.equal(torch.func.vmap(lambda x: call(x, bias))(rows)[1], call(2 * x, bias))
    # The bias is no row: sample by sample.
    both = torch.func.vmap(call)(rows, torch.stack([bias, -bias]))
    assert torch.equal(both[1], call(2 * x, -bias))


def test_autocast_lowers_activations_and_keeps_the_rest() -> None:
    x, bias = torch.ones(2, 3), torch.full((3,), 1 / 3, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(x, None)
        kept = call(x, bias)
    assert y.dtype == torch.bfloat16 and kept.dtype == torch.float32


def test_saved_tensors_are_taken_once() -> None:
    """Activation checkpointing refuses a second look."""
    x, bias = leaves()
    y = checkpoint(call, x, bias, use_reentrant=False)
    assert isinstance(y, Tensor)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), (x, bias)), torch.autograd.grad(call(x, bias).sum(), (x, bias))
    )


def test_a_call_that_nobody_has_to_see_goes_past_the_dispatcher() -> None:
    x, bias = (one.detach() for one in leaves())
    learnt = bias.clone().requires_grad_()
    grads = backward(x, x, None, 0.5, 3, True)
    assert isinstance(grads, list) and len(grads) == 2
    assert seen_by((x, None, 0.5)) is None
    assert "Tensor on meta" in (seen_by((x.to("meta"),)) or "")
    assert "plain CPU tensors" in (seen_by((torch._neg_view(x),)) or "")
    assert "autograd" in (seen_by((x, learnt)) or "")
    with torch.no_grad():
        assert seen_by((x, learnt)) is None
        assert torch.equal(call(x, bias), scaled.op(x, bias, 0.5, 3, True))
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in (seen_by((x,)) or "")
    with FlopCounterMode(display=False):
        assert "compiler or transform" in (seen_by((x,)) or "")
    with torch.autograd.forward_ad.dual_level():
        assert "forward-mode" in (seen_by((x,)) or "")
    assert not torch.func.vmap(lambda row: row * (seen_by((row,)) is None))(x).any()


def test_a_trace_without_gradients_is_of_the_operator_and_no_constant() -> None:
    x, bias = (one.detach() for one in leaves())
    with torch.no_grad():
        traced = torch.jit.trace(lambda one: call(one, bias), x)
    assert torch.equal(traced(x + 1), call(x + 1, bias))


def test_inference_leaves_the_compiler_of_torch_alone() -> None:
    """Importing it costs each command 1 to 2 s and 160 MB."""
    code = "import sys, torch\nearly = 'torch._dynamo' in sys.modules\n"
    code += "from longseq.core.mixers.mamba import Mamba\n"
    code += "with torch.inference_mode():\n    Mamba(4)(torch.zeros(1, 3, 4))\n"
    code += "assert early or 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_kinds_of_arguments_are_refused() -> None:
    class Wrong(NamedTuple):
        x: Tensor
        name: str

    with pytest.raises(KeyError):
        define("longseq_test::wrong", (Wrong,), 1, lambda x: x, cpu=lambda x: x)
