"""What the three compiled operators share: torch's transforms and compilers, threads, batches, no
data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from longseq.core.errors import LongseqError
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.causal_conv1d import torch_op as conv_op
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.linear_scan import torch_op as linear_op
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.selective_scan import torch_op as selective_op

Tensors = dict[str, Tensor]
PER_ROW = ("u", "delta", "B", "C", "z", "initial_state", "x", "a", "b")


def selective(
    batch: int, length: int, width: int, dtype: torch.dtype, complex_: bool = False
) -> Tensors:
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    wide = (lambda t: torch.complex(t, normal(*t.shape))) if complex_ else (lambda t: t)
    return {
        "u": normal(batch, length, width),
        "delta": normal(batch, length, width),
        "A": wide(-normal(width, 3).exp()),
        "B": wide(normal(batch, length, 3)),
        "C": wide(normal(batch, length, 3)),
        "D": normal(width),
        "z": normal(batch, length, width),
        "delta_bias": normal(width),
        "initial_state": wide(normal(batch, width, 3)),
    }


def linear(
    batch: int, length: int, width: int, dtype: torch.dtype, complex_: bool = False
) -> Tensors:
    g = torch.Generator().manual_seed(0)
    kind = torch.promote_types(dtype, torch.complex64) if complex_ else dtype
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=kind)  # noqa: E731
    return {
        "a": 0.5 * normal(batch, length, width),
        "b": normal(batch, length, width),
        "initial_state": normal(batch, width),
    }


def conv(
    batch: int, length: int, width: int, dtype: torch.dtype, complex_: bool = False
) -> Tensors:
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    return {
        "x": normal(batch, length, width),
        "weight": normal(width, 4),
        "bias": normal(width),
        "initial_state": normal(batch, 3, width),
    }


OPERATORS: dict[str, tuple[Callable[..., Tensors], Callable[..., tuple[Tensor, Tensor]]]] = {
    "selective_scan": (selective, lambda **k: selective_scan(**k, delta_softplus=True)),
    "linear_scan": (linear, linear_scan),
    "causal_conv1d": (conv, lambda **k: causal_conv1d(**k, activation="silu")),
}
KINDS = [
    ("selective_scan", False),
    ("selective_scan", True),
    ("linear_scan", False),
    ("linear_scan", True),
    ("causal_conv1d", False),
]
each = pytest.mark.parametrize(
    ("name", "complex_"), KINDS, ids=[n + "-complex" * c for n, c in KINDS]
)
by_name = pytest.mark.parametrize("name", OPERATORS)


def loss(run: Callable[..., tuple[Tensor, Tensor]], tensors: Tensors) -> Tensor:
    return sum(t.abs().square().sum() for t in run(**tensors))  # type: ignore[return-value]


def value_and_grads(run: Callable[..., tuple[Tensor, Tensor]], tensors: Tensors) -> list[Tensor]:
    leaves = {k: t.detach().requires_grad_() for k, t in tensors.items()}
    y, state = run(**leaves)
    real = [torch.view_as_real(t) if t.is_complex() else t for t in (y, state)]
    grads = torch.autograd.grad(real, [*leaves.values()], [t.detach().cos() for t in real])
    return [y.detach(), state.detach(), *grads]


@each
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradcheck(name: str, complex_: bool, backend: str) -> None:
    make, run = OPERATORS[name]
    tensors = make(2, 5, 3, torch.float64, complex_)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def function(*values: Tensor) -> Any:
        return run(**dict(zip(tensors, values)), backend=backend)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=len(leaves) > 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optional", [False, True])
def test_opcheck(dtype: torch.dtype, optional: bool) -> None:
    resets = torch.tensor([[False] * 3 + [True] + [False] * 2] * 2) if optional else None
    t = selective(2, 6, 3, torch.float64)
    t = {
        k: v.to(torch.float32 if dtype == torch.bfloat16 and k in ("A", "D") else dtype)
        for k, v in t.items()
    }
    t["B"], t["C"] = t["B"].unsqueeze(2), t["C"].unsqueeze(2)
    extra = (
        [t["D"], t["z"], t["delta_bias"], t["initial_state"], resets] if optional else [None] * 5
    )
    scan = [*(t[k] for k in ("u", "delta", "A", "B", "C")), *extra]
    leaves = [
        v.clone().requires_grad_() if v is not None and v.is_floating_point() else v for v in scan
    ]
    torch.library.opcheck(selective_op.forward.op, (*leaves, True, True))
    y, final, states = selective_op.forward(*scan, True, True)
    torch.library.opcheck(
        selective_op.backward.op, (torch.ones_like(y), final, *scan, True, states)
    )

    t = {k: v.to(dtype) for k, v in linear(2, 6, 3, torch.float64).items()}
    steps = [t["a"], t["b"], t["initial_state"] if optional else None]
    leaves = [v.clone().requires_grad_() if v is not None else v for v in steps]
    torch.library.opcheck(linear_op.forward.op, tuple(leaves))
    h = linear_op.forward(*steps)
    torch.library.opcheck(linear_op.backward.op, (torch.ones_like(h), *steps, h))

    t = {k: v.to(dtype) for k, v in conv(2, 6, 3, torch.float64).items()}
    row = [
        t["x"],
        t["weight"],
        *([t["bias"], t["initial_state"], resets] if optional else [None] * 3),
    ]
    leaves = [
        v.clone().requires_grad_() if v is not None and v.is_floating_point() else v for v in row
    ]
    torch.library.opcheck(conv_op.forward.op, (*leaves, True))
    torch.library.opcheck(conv_op.backward.op, (torch.ones_like(t["x"]), *row, True))


class Layer(nn.Module):
    """A small module around one operator, its parameters those arguments that are not per row."""

    def __init__(self, name: str) -> None:
        super().__init__()
        make, self.run = OPERATORS[name]
        tensors = make(2, 6, 3, torch.float32)
        self.rows = [k for k in tensors if k in PER_ROW]
        self.weights = nn.ParameterDict(
            {k: nn.Parameter(t) for k, t in tensors.items() if k not in PER_ROW}
        )

    def forward(self, *rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(**dict(zip(self.rows, rows)), **dict(self.weights.items()))


def layer_and_rows(name: str, length: int = 6) -> tuple[Layer, list[Tensor]]:
    layer = Layer(name)
    tensors = OPERATORS[name][0](2, length, 3, torch.float32)
    return layer, [tensors[k] for k in layer.rows]


@by_name
def test_compile_without_graph_breaks(name: str) -> None:
    layer, rows = layer_and_rows(name)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (6, 9, 40):
        _, rows = layer_and_rows(name, length)
        results = []
        for module in (layer, compiled):
            leaves = [t.clone().requires_grad_() for t in rows]
            y, state = module(*leaves)
            targets = [*leaves, *layer.parameters()]
            results.append([y, state, *torch.autograd.grad(y.sum() + state.sum(), targets)])
        assert all(torch.equal(a, b) for a, b in zip(*results))
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    layer, rows = layer_and_rows("selective_scan", 40)
    torch._dynamo.reset()
    for a, b in zip(torch.compile(layer, fullgraph=True)(*rows), layer(*rows)):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@by_name
def test_export(name: str) -> None:
    layer, rows = layer_and_rows(name)
    # From the width of the convolution's kernel on: its final state is a slice of the sequence only
    # there.
    length = torch.export.Dim("length", min=4 if name == "causal_conv1d" else 2, max=1000)
    dims = [{1: length} if key != "initial_state" else {} for key in layer.rows]
    program = torch.export.export(layer.eval(), tuple(rows), dynamic_shapes=(tuple(dims),))
    _, longer = layer_and_rows(name, 33)
    assert all(torch.equal(a, b) for a, b in zip(program.module()(*longer), layer(*longer)))
    assert any(f"longseq.{name}" in str(node.target) for node in program.graph.nodes)


def samples(tensors: Tensors, batched: tuple[str, ...], count: int = 3) -> Tensors:
    g = torch.Generator().manual_seed(1)
    scale = {k: torch.rand(count, generator=g) + 0.5 for k in batched}
    return {k: scale[k].view(-1, *[1] * tensors[k].dim()) * tensors[k] for k in batched}


@each
@pytest.mark.parametrize("nested", [False, True])
def test_vmap_equals_a_loop(name: str, complex_: bool, nested: bool) -> None:
    make, run = OPERATORS[name]
    tensors = make(2, 6, 3, torch.float64, complex_)
    rows = tuple(k for k in tensors if k in PER_ROW)
    for batched in (*((k,) for k in tensors), rows, tuple(tensors)):
        stacks = samples(tensors, batched)
        function = lambda part: run(**{**tensors, **part})  # noqa: E731
        expected = [function({k: s[i] for k, s in stacks.items()}) for i in range(3)]
        if nested:
            stacks = {k: torch.stack([s, s], 1) for k, s in stacks.items()}
            actual = [t[:, 1] for t in vmap(vmap(function))(stacks)]
        else:
            actual = list(vmap(function)(stacks))
        for found, wanted in zip(actual, zip(*expected)):
            assert torch.equal(found, torch.stack(wanted)), batched


@each
def test_functional_and_per_sample_gradients_equal_autograd(name: str, complex_: bool) -> None:
    make, run = OPERATORS[name]
    tensors = make(2, 6, 3, torch.float64, complex_)

    def wanted(values: Tensors) -> Tensors:
        leaves = {k: t.detach().requires_grad_() for k, t in values.items()}
        return dict(zip(leaves, torch.autograd.grad(loss(run, leaves), [*leaves.values()])))

    expected = wanted(tensors)
    for key, value in grad(lambda values: loss(run, values))(tensors).items():
        assert torch.equal(value, expected[key]), key
    for batched in (tuple(k for k in tensors if k in PER_ROW), tuple(tensors)):
        stacks = samples(tensors, batched)
        fixed = {k: t for k, t in tensors.items() if k not in batched}
        found = vmap(
            grad(lambda part, rest: loss(run, {**part, **rest}), argnums=(0, 1)), (0, None)
        )(stacks, fixed)
        for i in range(3):
            expected = wanted({**fixed, **{k: s[i] for k, s in stacks.items()}})
            for key, value in {**found[0], **found[1]}.items():
                torch.testing.assert_close(value[i], expected[key], rtol=1e-12, atol=1e-12)
        together = grad(lambda s: vmap(lambda part: loss(run, {**fixed, **part}))(s).sum())(stacks)  # noqa: B023
        for key, value in together.items():
            torch.testing.assert_close(value, found[0][key], rtol=1e-12, atol=1e-12)


@by_name
def test_autocast_lowers_activations_and_keeps_states(name: str) -> None:
    make, run = OPERATORS[name]
    tensors = make(2, 40, 5, torch.float32)
    exact = run(**tensors)
    leaves = {k: t.requires_grad_() for k, t in tensors.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = run(**leaves)
        assert y.dtype == (torch.float32 if name == "linear_scan" else torch.bfloat16)
        half = {k: t.bfloat16() if k in PER_ROW else t for k, t in tensors.items()}
        assert run(**half)[0].dtype == y.dtype
    assert state.dtype == torch.float32
    for found, wanted in zip((y, state), exact):
        assert (found - wanted).abs().max() <= 2 * torch.finfo(
            torch.bfloat16
        ).eps * wanted.abs().max()
    (y.float().sum() + state.sum()).backward()
    for tensor in leaves.values():
        assert (
            tensor.grad is not None
            and tensor.grad.dtype == torch.float32
            and tensor.grad.isfinite().all()
        )


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_neighbours(
    name: str, complex_: bool, dtype: torch.dtype
) -> None:
    if complex_ and dtype == torch.bfloat16:
        pytest.skip("there is no complex bfloat16")
    make, run = OPERATORS[name]
    tensors = make(3, 300, 70, dtype, complex_)
    if dtype == torch.bfloat16 and "A" in tensors:
        tensors["A"] = tensors["A"].float()
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            runs.append(value_and_grads(run, tensors))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other))
        one = {k: t[1:2] if k in PER_ROW else t for k, t in tensors.items()}
        alone = value_and_grads(run, one)
    finally:
        torch.set_num_threads(before)
    for key, a, b in zip(["y", "state", *tensors], runs[0], alone):
        if key in ("y", "state", *PER_ROW):
            assert torch.equal(a[1:2], b), key


@each
@pytest.mark.parametrize(("batch", "length", "width"), [(0, 5, 3), (2, 1, 1), (2, 5, 0), (0, 1, 0)])
def test_small_and_empty_inputs(
    name: str, complex_: bool, batch: int, length: int, width: int
) -> None:
    make, run = OPERATORS[name]
    tensors = make(batch, length, width, torch.float32, complex_)
    for found, wanted in zip(
        value_and_grads(run, tensors),
        value_and_grads(lambda **k: run(**k, backend="reference"), tensors),
    ):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(LongseqError, match="length ≥ 1"):
        run(**make(2, 0, 3, torch.float32, complex_))


def test_no_states_at_all() -> None:
    tensors = selective(2, 5, 3, torch.float32)
    for key in ("A", "B", "C", "initial_state"):
        tensors[key] = tensors[key][..., :0]
    y, state = selective_scan(**tensors, delta_softplus=True)
    expected = tensors["u"] * tensors["D"] * torch.nn.functional.silu(tensors["z"])
    torch.testing.assert_close(y, expected)
    assert state.shape == (2, 3, 0)


def test_views_that_are_conjugated_or_negated() -> None:
    t = selective(2, 20, 3, torch.float32, complex_=True)
    pair = torch.randn(2, 20, 3, dtype=torch.complex64).conj()
    lazy = {
        **t,
        "B": t["B"].conj(),
        "A": t["A"].conj(),
        "initial_state": t["initial_state"].conj(),
        "u": pair.imag,
    }
    assert lazy["u"].is_neg() and lazy["B"].is_conj()
    plain = {k: v.resolve_conj().resolve_neg() for k, v in lazy.items()}
    run = OPERATORS["selective_scan"][1]
    for a, b in zip(value_and_grads(run, lazy), value_and_grads(run, plain)):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
