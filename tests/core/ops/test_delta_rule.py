"""The delta rule: chunked against sequential for every kind of decay, strong decays, repeated
keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.backends import native
from longseq.core.ops.delta_rule import delta_rule, delta_rule_reference
from longseq.core.ops.linear_attention import linear_attention

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
        "k": torch.nn.functional.normalize(normal(BATCH, length, GROUPS, KEY), dim=-1),
        "v": normal(BATCH, length, HEADS, VALUE),
        "beta": 2 * normal(BATCH, length, HEADS).sigmoid(),
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
    expected = run(delta_rule_reference, tensors, torch.float64, resets)
    assert_close(run(delta_rule, tensors, dtype, resets), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 256])
@pytest.mark.parametrize("decay", ["head", "channel"])
def test_chunk_size_changes_nothing(chunk_size: int, decay: str) -> None:
    tensors = inputs(41, decay)
    y, state = delta_rule(**tensors)
    actual = delta_rule(**tensors, chunk_size=chunk_size)
    assert_close({"y": actual[0], "state": actual[1]}, {"y": y, "state": state}, 1e-13)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_strong_decays_keep_float32_precision(decay: str) -> None:
    """Cumulative log-decays of thousands inside a chunk, with slow spans between them."""
    tensors = inputs(128, decay, strength=60.0)
    slow = torch.arange(128) % 16 >= 4
    tensors["log_decay"][:, slow] *= 1e-3
    expected = run(delta_rule_reference, tensors, torch.float64, None)
    actual = run(delta_rule, tensors, torch.float32, None)
    assert all(value.isfinite().all() for value in actual.values())
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_log_decay_of_minus_infinity_is_a_reset(decay: str) -> None:
    tensors = inputs(20, decay)
    resets = torch.zeros(BATCH, 20, dtype=torch.bool)
    resets[:, [0, 7, 8]] = True
    forgets = tensors | {"log_decay": tensors["log_decay"].clone()}
    forgets["log_decay"][:, [0, 7, 8]] = -math.inf
    expected = run(delta_rule_reference, tensors, torch.float64, resets)
    actual = run(delta_rule, forgets, torch.float64, None)
    assert_close(actual, expected, 1e-12)
    assert expected["initial_state"].abs().max() == 0
    fresh, _ = delta_rule_reference(
        **{k: v[:, 8:] for k, v in tensors.items() if k != "initial_state"}
    )
    torch.testing.assert_close(actual["y"][:, 8:], fresh, rtol=1e-12, atol=1e-12)


def test_without_gradients_a_long_call_runs_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.core.ops.chunking.BLOCK", 16)
    tensors = inputs(50, "head")
    resets = torch.rand(BATCH, 50, generator=torch.Generator().manual_seed(3)) < 0.1
    expected = delta_rule_reference(**tensors, resets=resets)
    with torch.no_grad():
        actual = delta_rule(**tensors, resets=resets)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    plain = {key: tensors[key] for key in ("q", "k", "v", "beta")}
    with torch.no_grad():
        actual = delta_rule(**plain)
    torch.testing.assert_close(actual, delta_rule_reference(**plain), rtol=1e-12, atol=1e-12)


def test_orthogonal_keys_are_linear_attention() -> None:
    """No key finds what another one wrote."""
    tensors = {key: value for key, value in inputs(KEY, "head").items() if key != "initial_state"}
    keys = torch.linalg.qr(torch.randn(BATCH, GROUPS, KEY, KEY, dtype=torch.float64))[0].transpose(
        1, 2
    )
    beta = tensors.pop("beta")
    y, state = delta_rule(**tensors | {"k": keys, "beta": beta})
    written = tensors["v"] * beta.unsqueeze(-1)
    torch.testing.assert_close((y, state), linear_attention(**tensors | {"k": keys, "v": written}))


def test_a_repeated_key_finds_its_last_value() -> None:
    """A linear system that is as far from its diagonal as it can be: every key of a chunk is the
    same."""
    for dtype, tolerance in TOLERANCE.items():
        tensors = {key: value.to(dtype) for key, value in inputs(100, "none").items()}
        tensors["k"] = tensors["k"][:, :1].expand(-1, 100, -1, -1)
        tensors["beta"] = torch.ones_like(tensors["beta"])
        y, _ = delta_rule(**tensors | {"q": tensors["k"]}, scale=1.0)
        assert (y - tensors["v"]).abs().max() <= tolerance * tensors["v"].abs().max()


def test_an_empty_batch() -> None:
    tensors = {key: value[:0] for key, value in inputs(70, "channel").items()}
    y, state = delta_rule(**tensors)
    assert y.shape == (0, 70, HEADS, VALUE) and state.shape == (0, HEADS, KEY, VALUE)


def test_low_precision_inputs_keep_a_float32_state() -> None:
    tensors = {key: value.bfloat16() for key, value in inputs(33, "head").items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, state = delta_rule(**tensors)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    expected, _ = delta_rule_reference(**{key: value.double() for key, value in tensors.items()})
    assert (
        y - expected
    ).abs().max() <= 2**-8 * expected.abs().max()  # the rounding of the output alone


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_gradcheck(decay: str) -> None:
    tensors = {key: value[:1].requires_grad_() for key, value in inputs(6, decay).items()}
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: delta_rule(**dict(zip(names, values)), chunk_size=4), list(tensors.values())
    )


def test_transforms_compilation_and_second_derivatives() -> None:
    tensors = {key: value[:1, :10] for key, value in inputs(20, "head").items()}
    tensors["initial_state"] = inputs(20, "head")["initial_state"][:1]
    names = list(tensors)

    def run_it(*values: Tensor) -> Tensor:
        y, state = delta_rule(**dict(zip(names, values)), chunk_size=4)
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
        ("q", (BATCH, 0, GROUPS, KEY)),
        ("beta", (BATCH, 4, GROUPS)),
        ("log_decay", (BATCH, 4, HEADS, KEY)),
        ("initial_state", (BATCH, HEADS, VALUE, KEY)),
    ],
)
def test_wrong_shapes_are_named(name: str, shape: tuple[int, ...]) -> None:
    tensors = inputs(4, "head") | {name: torch.zeros(shape)}
    with pytest.raises(ArgumentError, match=f"^delta_rule: {name} must"):
        delta_rule(**tensors)


def test_wrong_chunk_size_is_named() -> None:
    with pytest.raises(ArgumentError, match="chunk_size must be at least 1, got 0"):
        delta_rule(**inputs(4, "head"), chunk_size=0)


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa: str, decay: str) -> None:
    """Widths that fill no vector, chunks in several blocks, several saved states."""
    kernels = native()
    if isa not in kernels.available_isas():
        pytest.skip(f"this processor has no {isa}")
    generator, before = torch.Generator().manual_seed(0), kernels.isa()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    tensors = {
        "q": normal(1, 330, 1, 18),
        "k": torch.nn.functional.normalize(normal(1, 330, 1, 18), dim=-1),
        "v": normal(1, 330, 2, 35),
        "beta": 2 * normal(1, 330, 2).sigmoid(),
        "initial_state": normal(1, 2, 18, 35),
    }
    if decay != "none":
        shape = (1, 330, 2) if decay == "head" else (1, 330, 1, 18)
        tensors["log_decay"] = -0.1 * normal(*shape).exp()
    expected = run(delta_rule_reference, tensors, torch.float64, None)
    try:
        kernels.select_isa(isa)
        for dtype, tolerance in TOLERANCE.items():
            assert_close(run(delta_rule, tensors, dtype, None), expected, tolerance)
    finally:
        kernels.select_isa(before)


def test_half_precision_is_read_and_written_as_it_lies() -> None:
    """Rows of a wider tensor in bfloat16: float32 inside, gradients in the inputs' dtypes."""
    made = {key: value.float() for key, value in inputs(70, "head").items()}
    wide = torch.randn(BATCH, 70, HEADS, VALUE + 3, generator=torch.Generator().manual_seed(1))
    lowered = {key: made[key].bfloat16() for key in ("q", "k")}
    lowered["v"] = wide.bfloat16().flatten(2)[..., : HEADS * VALUE].unflatten(2, (HEADS, VALUE))
    leaves = {key: value.detach().requires_grad_() for key, value in (made | lowered).items()}
    y, state = delta_rule(**leaves)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    (y.float().sum() + state.sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in leaves.values())
    exact = {key: value.detach().double().requires_grad_() for key, value in leaves.items()}
    expected, last = delta_rule_reference(**exact)
    (expected.sum() + last.sum()).backward()
    for key, leaf in leaves.items():
        error = (leaf.grad.double() - exact[key].grad).abs().max()
        tolerance = 2.0**-8 if leaf.dtype == torch.bfloat16 else 1e-5
        assert error <= tolerance * exact[key].grad.abs().max(), key
    torch.testing.assert_close(state.double(), last.detach(), rtol=1e-5, atol=1e-5)


def test_results_do_not_depend_on_threads_or_neighbours() -> None:
    tensors = inputs(130, "channel")
    whole, threads = run(delta_rule, tensors, torch.float32, None), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        again = run(delta_rule, tensors, torch.float32, None)
    finally:
        torch.set_num_threads(threads)
    assert all(again[key].equal(value) for key, value in whole.items())
    with torch.no_grad():
        alone, _ = delta_rule(**{key: value[:1].float() for key, value in tensors.items()})
    assert alone.equal(whole["y"][:1])
