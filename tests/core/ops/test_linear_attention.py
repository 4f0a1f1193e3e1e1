"""Linear attention: chunked against sequential for every kind of decay, strong decays, wrong
shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.chunking import lower_triangular, span_sums
from longseq.core.ops.linear_attention import linear_attention, linear_attention_reference

# Relative to the largest value: about a hundred roundings.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
BATCH, GROUPS, SHARED, KEY, VALUE = 2, 2, 3, 5, 4
HEADS = GROUPS * SHARED


def inputs(length: int, decay: str, strength: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    made = {
        "q": normal(BATCH, length, GROUPS, KEY),
        "k": normal(BATCH, length, GROUPS, KEY),
        "v": normal(BATCH, length, HEADS, VALUE),
        "initial_state": normal(BATCH, HEADS, KEY, VALUE),
    }
    if decay == "head":
        made["log_decay"] = -strength * normal(BATCH, length, HEADS).exp()
    if decay == "channel":
        made["log_decay"] = -strength * normal(BATCH, length, GROUPS, KEY).exp()
    return made


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    resets: Tensor | None,
) -> dict[str, Tensor]:
    leaves = {key: value.to(dtype).requires_grad_() for key, value in tensors.items()}
    y, state = function(**leaves, resets=resets)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).cos().to(dtype)
    gradients = torch.autograd.grad((y * weights).sum() + state.sin().sum(), list(leaves.values()))
    return {"y": y.detach(), "state": state.detach(), **dict(zip(leaves, gradients))}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        error = (actual[key].double() - value.double()).abs().max().item()
        assert error <= tolerance * value.abs().max().item(), f"{key}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", ["none", "head", "channel"])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 100])
def test_chunked_equals_sequential(length: int, decay: str, dtype: torch.dtype) -> None:
    tensors = inputs(length, decay)
    resets = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = run(linear_attention_reference, tensors, torch.float64, resets)
    assert_close(run(linear_attention, tensors, dtype, resets), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 256])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_chunk_size_changes_nothing(chunk_size: int, decay: str) -> None:
    tensors = inputs(41, decay)
    y, state = linear_attention(**tensors)
    actual = linear_attention(**tensors, chunk_size=chunk_size)
    assert_close({"y": actual[0], "state": actual[1]}, {"y": y, "state": state}, 1e-13)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_strong_decays_keep_float32_precision(decay: str) -> None:
    """Cumulative log-decays of thousands inside a chunk, with slow spans between them."""
    tensors = inputs(128, decay, strength=60.0)
    slow = torch.arange(128) % 16 >= 4
    tensors["log_decay"][:, slow] *= 1e-3
    expected = run(linear_attention_reference, tensors, torch.float64, None)
    actual = run(linear_attention, tensors, torch.float32, None)
    assert all(value.isfinite().all() for value in actual.values())
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_log_decay_of_minus_infinity_is_a_reset(decay: str) -> None:
    tensors = inputs(20, decay)
    resets = torch.zeros(BATCH, 20, dtype=torch.bool)
    resets[:, [0, 7, 8]] = True
    forgets = tensors | {"log_decay": tensors["log_decay"].clone()}
    forgets["log_decay"][:, [0, 7, 8]] = -math.inf
    expected = run(linear_attention_reference, tensors, torch.float64, resets)
    actual = run(linear_attention, forgets, torch.float64, None)
    assert_close(actual, expected, 1e-12)
    assert expected["initial_state"].abs().max() == 0
    fresh, _ = linear_attention_reference(
        **{k: v[:, 8:] for k, v in tensors.items() if k != "initial_state"}
    )
    torch.testing.assert_close(actual["y"][:, 8:], fresh, rtol=1e-12, atol=1e-12)


def test_without_gradients_a_long_call_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.core.ops.chunking.BLOCK", 16)
    tensors = inputs(50, "head")
    resets = torch.rand(BATCH, 50, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = linear_attention_reference(**tensors, resets=resets)
    with torch.no_grad():
        actual = linear_attention(**tensors, resets=resets)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    plain = {key: tensors[key] for key in ("q", "k", "v")}
    with torch.no_grad():
        actual = linear_attention(**plain)
    torch.testing.assert_close(actual, linear_attention_reference(**plain), rtol=1e-12, atol=1e-12)


def test_defaults_are_plain_causal_attention_without_softmax() -> None:
    tensors = inputs(9, "none")
    q, k, v = tensors["q"], tensors["k"].repeat_interleave(SHARED, 2), tensors["v"]
    scores = torch.einsum("blhk,bmhk->bhlm", q.repeat_interleave(SHARED, 2), k).tril() / math.sqrt(
        KEY
    )
    y, state = linear_attention(q, tensors["k"], v)
    torch.testing.assert_close(y, torch.einsum("bhlm,bmhv->blhv", scores, v))
    torch.testing.assert_close(state, torch.einsum("blhk,blhv->bhkv", k, v))


def test_low_precision_inputs_keep_a_float32_state() -> None:
    tensors = {key: value.bfloat16() for key, value in inputs(33, "head").items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, state = linear_attention(**tensors)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    expected, _ = linear_attention_reference(
        **{key: value.double() for key, value in tensors.items()}
    )
    assert (
        y - expected
    ).abs().max() <= 2**-8 * expected.abs().max()  # the rounding of the output alone


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_gradcheck(decay: str) -> None:
    tensors = {key: value[:1].requires_grad_() for key, value in inputs(6, decay).items()}
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: linear_attention(**dict(zip(names, values)), chunk_size=4),
        list(tensors.values()),
    )


def test_transforms_compilation_and_second_derivatives() -> None:
    tensors = {key: value[:1, :20] for key, value in inputs(20, "head").items()}
    tensors["initial_state"] = inputs(20, "head")["initial_state"][:1]
    names = list(tensors)

    def run_it(*values: Tensor) -> Tensor:
        y, state = linear_attention(**dict(zip(names, values)), chunk_size=4)
        return y.sin().sum() + state.square().sum()

    values = [value.requires_grad_() for value in tensors.values()]
    assert torch.autograd.gradgradcheck(run_it, values)
    wanted = torch.autograd.grad(run_it(*values), values)
    torch.testing.assert_close(torch.func.grad(run_it, tuple(range(len(values))))(*values), wanted)
    rows = [torch.stack([value, 2 * value]) for value in values]
    found = torch.func.vmap(torch.func.grad(run_it, tuple(range(len(values)))))(*rows)
    for i, value in enumerate(values):
        torch.testing.assert_close(
            found[i][0], wanted[i], msg=f"argument {names[i]} {tuple(value.shape)}"
        )
    compiled = torch.compile(run_it, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*values), values), wanted)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("k", (BATCH, 4, GROUPS, KEY + 1)),
        ("q", (BATCH, 4, KEY)),
        ("v", (BATCH, 4, HEADS + 1, VALUE)),
        ("log_decay", (BATCH, 4, HEADS, KEY)),
        ("initial_state", (BATCH, HEADS, VALUE, KEY)),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...]) -> None:
    tensors = inputs(4, "head") | {name: torch.zeros(shape)}
    with pytest.raises(ArgumentError, match=f"^linear_attention: {name} must"):
        linear_attention(**tensors)


def test_wrong_chunk_size_is_named() -> None:
    with pytest.raises(ArgumentError, match="chunk_size must be at least 1, got 0"):
        linear_attention(**inputs(4, "head"), chunk_size=0)


def test_span_sums_fill_a_decay_matrix() -> None:
    log_decay = -torch.rand(8, dtype=torch.float64)
    spans = span_sums(log_decay.unsqueeze(-1))
    blocks = (a[1::2] + b[0::2].transpose(-1, -2) for a, b in spans[:-1])
    matrix = lower_triangular(torch.zeros(8, 1, 1, dtype=torch.float64), blocks, -math.inf)
    for row in range(8):
        for column in range(8):
            span = (
                log_decay[column + 1 : row + 1].sum() if column <= row else torch.tensor(-math.inf)
            )
            torch.testing.assert_close(matrix[row, column], span.double())


def test_gradients_without_any_decay() -> None:
    """Neither a decay nor resets, a key for every head: none of the kernel's options is given."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, 70, 2, 5, dtype=torch.float64, generator=generator) for _ in range(3)]
    found = []
    for function in (linear_attention, linear_attention_reference):
        leaves = [row.clone().requires_grad_() for row in rows]
        y, state = function(*leaves)
        (y.sin().sum() + state.sin().sum()).backward()
        found.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(*found)
