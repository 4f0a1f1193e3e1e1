"""SSD, linear attention, the delta rule and the mLSTM by Triton against the sequential references.

Every output and every gradient is compared; memory that is allocated and not yet written holds NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError, BackendError
from longseq.core.ops.delta_rule import delta_rule, delta_rule_reference
from longseq.core.ops.linear_attention import linear_attention, linear_attention_reference
from longseq.core.ops.mlstm import mlstm, mlstm_reference
from longseq.core.ops.ssd import ssd, ssd_reference

# Relative to the largest value. float32: a hundred roundings; the others: a rounding of the inputs
# to every product, and of the outputs.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
Tensors = dict[str, Tensor]
Function = Callable[..., dict[str, Tensor]]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fills memory with NaN when it is allocated."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def normal(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def attention_inputs(
    length: int, decay: str, strength: float = 1.0, groups: int = 1, key: int = 5, value: int = 4
) -> Tensors:
    n, heads = normal(length), 2 * groups
    made = {name: n(1, length, groups, key) for name in ("q", "k")}
    made |= {"v": n(1, length, heads, value), "initial_state": n(1, heads, key, value)}
    if decay != "none":
        shape = (1, length, heads) if decay == "head" else (1, length, groups, key)
        made["log_decay"] = -strength * n(*shape).exp()
    return made


def delta_inputs(
    length: int, decay: str, strength: float = 1.0, groups: int = 1, key: int = 5, value: int = 4
) -> Tensors:
    made = attention_inputs(length, decay, strength, groups, key, value)
    made["k"] = torch.nn.functional.normalize(made["k"], dim=-1)
    return made | {"beta": 2 * normal(length + 1)(1, length, 2 * groups).sigmoid()}


def attention(function: Callable[..., Any], **options: Any) -> Function:
    def call(**tensors: Tensor) -> Tensors:
        y, state = function(**tensors, **options)
        return {"y": y, "state": state}

    return call


def mlstm_inputs(length: int, with_state: bool = True, shift: float = -3.0) -> Tensors:
    # The default shift keeps |nᵀq| below its floor as a rule: dividing by a difference that happens
    # to vanish would amplify any rounding.
    n = normal(length)
    made = {name: n(1, length, 2, 5) for name in ("q", "k")}
    made |= {"v": n(1, length, 2, 4), "i": n(1, length, 2) + shift, "f": n(1, length, 2) + 2}
    if with_state:
        made |= {"c": 0.3 * n(1, 2, 5, 4), "n": 0.3 * n(1, 2, 5), "m": n(1, 2) + shift + 1}
    return made


def memory(function: Callable[..., Any], **options: Any) -> Function:
    def call(**tensors: Tensor) -> Tensors:
        state = tuple(tensors.pop(key) for key in ("c", "n", "m")) if "c" in tensors else None
        y, (c, n, m) = function(**tensors, initial_state=state, **options)
        return {"y": y, "last c": c, "last n": n, "last m": m}

    return call


def run(
    function: Function, tensors: Tensors, exact: bool, dtype: torch.dtype, device: str
) -> Tensors:
    """Returns outputs and gradients; ``exact``: in float64, of the inputs as they are in
    ``dtype``."""
    low = ("q", "k", "v", "x", "z", "B", "C")
    leaves = {}
    for key, value in tensors.items():
        leaf = value.to(device, dtype if key in low else torch.float32)
        leaves[key] = (leaf.double() if exact else leaf).requires_grad_()
    results = function(**leaves)
    loss = torch.zeros((), device=device)
    for key, value in results.items():
        weights = (
            torch.linspace(-1, 1, value.numel(), dtype=torch.float64, device=device)
            .view_as(value)
            .cos()
        )
        loss = loss + (value.double() * weights).sum()
        # Whose rounding would change the gradient of a loss that is not linear in it.
        if key != "y":
            loss = loss + value.double().sin().sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {key: value.detach() for key, value in results.items()} | {
        f"gradient of {key}": value for key, value in zip(leaves, gradients)
    }


def assert_agree(
    fast: Function,
    reference: Function,
    tensors: Tensors,
    device: str,
    dtype: torch.dtype = torch.float32,
) -> None:
    expected = run(reference, tensors, True, dtype, device)
    actual = run(fast, tensors, False, dtype, device)
    for key, value in expected.items():
        error = (actual[key].double() - value).abs().max().item()
        assert error <= TOLERANCE[dtype] * value.abs().max().item(), f"{key}: {error:.2e}"


def some_resets(length: int, device: str) -> Tensor:
    resets = torch.zeros(1, length, dtype=torch.bool, device=device)
    resets[:, [5, length - 4]] = True
    return resets


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
@pytest.mark.parametrize("length", [1, 19])
def test_linear_attention(length: int, decay: str, device: str) -> None:
    resets = some_resets(length, device) if length > 1 and decay != "head" else None
    assert_agree(
        attention(linear_attention, resets=resets, chunk_size=16, backend="triton"),
        attention(linear_attention_reference, resets=resets),
        attention_inputs(length, decay),
        device,
    )


def test_several_blocks_on_the_diagonal(device: str) -> None:
    assert_agree(
        attention(linear_attention, chunk_size=64, backend="triton"),
        attention(linear_attention_reference),
        attention_inputs(35, "channel"),
        device,
    )


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_strong_decays_keep_float32_precision(decay: str, device: str) -> None:
    """Cumulative log-decays of thousands inside a chunk, slow spans between them, and resets as
    -inf."""
    tensors = attention_inputs(32, decay, strength=60.0)
    tensors["log_decay"][:, torch.arange(32) % 16 >= 4] *= 1e-3
    tensors["log_decay"][:, 9] = -torch.inf
    fast = attention(linear_attention, chunk_size=32, backend="triton")
    assert_agree(fast, attention(linear_attention_reference), tensors, device)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_heads_wider_than_a_block(decay: str, device: str) -> None:
    assert_agree(
        attention(linear_attention, backend="triton"),
        attention(linear_attention_reference),
        attention_inputs(3, decay, key=40, value=70),
        device,
    )


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(decay: str, dtype: torch.dtype, device: str) -> None:
    fast = attention(linear_attention, backend="triton")
    reference = attention(linear_attention_reference)
    assert_agree(fast, reference, attention_inputs(9, decay), device, dtype)


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
@pytest.mark.parametrize(
    ("length", "groups", "strength"), [(1, 1, 1.0), (70, 2, 1.0), (70, 1, 60.0)]
)
def test_delta_rule(length: int, groups: int, strength: float, decay: str, device: str) -> None:
    """Two chunks, with resets, a state handed in and two heads per key; strong decays with slow
    spans."""
    options = {"resets": some_resets(length, device) if length > 1 else None}
    tensors = delta_inputs(length, decay, strength, groups)
    if strength > 1 and decay != "none":
        tensors["log_decay"][:, torch.arange(length) % 8 >= 2] *= 1e-3
    assert_agree(
        attention(delta_rule, backend="triton", **options),
        attention(delta_rule_reference, **options),
        tensors,
        device,
    )


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_delta_rule_in_segments(decay: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks, each walked by itself and then joined; a reset in the last one."""
    from longseq.core.kernels.triton import _delta_steps

    monkeypatch.setattr(_delta_steps, "_SEGMENT", 1)
    options = {"resets": torch.zeros(1, 140, dtype=torch.bool, device=device)}
    options["resets"][:, 133] = True
    tensors = delta_inputs(140, decay, strength=1e-2)
    reference = attention(delta_rule_reference, **options)
    assert_agree(attention(delta_rule, backend="triton", **options), reference, tensors, device)


def test_delta_rule_compiled_and_transformed(device: str) -> None:
    """Without graph breaks, under torch.func and for an empty batch: the inverse is an output of
    its own."""
    tensors = {key: value.float().to(device) for key, value in delta_inputs(5, "head").items()}
    names, values = list(tensors), [value.requires_grad_() for value in tensors.values()]

    def loss(*values: Tensor) -> Tensor:
        y, state = delta_rule(**dict(zip(names, values)), backend="triton")
        return y.sin().sum() + state.sin().sum()

    wanted = torch.autograd.grad(loss(*values), values)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*values), values), wanted)
    rows = [torch.stack([value.detach(), 0.5 * value.detach()]) for value in values]
    found = torch.func.vmap(torch.func.grad(loss, tuple(range(len(values)))))(*rows)
    torch.testing.assert_close(tuple(x[0] for x in found), wanted)
    y, state = delta_rule(**{key: value[:0] for key, value in tensors.items()}, backend="triton")
    assert y.shape == (0, 5, 2, 4) and state.shape == (0, 2, 5, 4)


@pytest.mark.parametrize(
    ("decay", "shared"), [("head", 101376), ("head", 232448), ("channel", 232448)]
)
def test_delta_rule_of_repeated_keys(
    decay: str, shared: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The triangle is as far from the identity as can be; wide heads, little and much shared
    memory."""
    from longseq.core.kernels.triton import _delta_plan

    monkeypatch.setattr(_delta_plan, "_LEAST_SHARED", shared)
    tensors = delta_inputs(65, decay, strength=1e-3, key=70, value=40)
    tensors["k"] = tensors["k"][:, :1].expand_as(tensors["k"])
    tensors["beta"] = torch.ones_like(tensors["beta"])
    reference = attention(delta_rule_reference)
    assert_agree(attention(delta_rule, backend="triton"), reference, tensors, device)


@pytest.mark.parametrize(("length", "groups"), [(1, 2), (19, 1)])
def test_ssd(length: int, groups: int, device: str) -> None:
    n, heads = normal(length), 2 * groups
    tensors = {
        "x": n(1, length, heads, 3),
        "dt": n(1, length, heads),
        "A": -n(heads).exp(),
        "B": n(1, length, groups, 5),
        "C": n(1, length, groups, 5),
        "D": n(heads),
        "z": n(1, length, heads, 3),
        "dt_bias": n(heads),
        "initial_states": n(1, heads, 3, 5),
    }
    options = {"dt_softplus": True, "resets": some_resets(length, device) if length > 1 else None}
    assert_agree(
        attention(ssd, chunk_size=16, backend="triton", **options),
        attention(ssd_reference, **options),
        tensors,
        device,
    )


@pytest.mark.parametrize(
    ("length", "with_state", "with_resets"),
    [(1, False, False), (19, True, False), (19, False, True)],
)
def test_mlstm(length: int, with_state: bool, with_resets: bool, device: str) -> None:
    resets = some_resets(length, device) if with_resets else None
    assert_agree(
        memory(mlstm, resets=resets, chunk_size=16, backend="triton"),
        memory(mlstm_reference, resets=resets),
        mlstm_inputs(length, with_state),
        device,
    )


def test_mlstm_divided_by_its_normaliser(device: str) -> None:
    """Large gates: the divisor is |nᵀq|, whose gradient reaches q, k and the gates."""
    tensors = mlstm_inputs(7, shift=4.0)
    for name in ("q", "k", "n"):
        tensors[name] = tensors[name].abs()
    assert_agree(memory(mlstm, backend="triton"), memory(mlstm_reference), tensors, device)


def test_mlstm_gradient_through_the_stabiliser(device: str) -> None:
    """With a large eps the output depends on the unit exp(m) that the states are kept in."""
    fast, reference = (
        memory(f, eps=0.5, **o) for f, o in ((mlstm, {"backend": "triton"}), (mlstm_reference, {}))
    )
    assert_agree(fast, reference, mlstm_inputs(9, shift=0.0), device)


def test_mlstm_of_vanishing_gates(device: str) -> None:
    """exp(-m) beyond float32: the output is 0, the state is not."""
    fast = memory(mlstm, chunk_size=16, backend="triton")
    tensors = mlstm_inputs(9, shift=-95.0)
    actual = run(fast, tensors, False, torch.float32, device)
    expected = run(memory(mlstm_reference), tensors, True, torch.float32, device)
    assert all(value.isfinite().all() for value in actual.values())
    for key in ("last c", "last n", "last m"):
        torch.testing.assert_close(actual[key].double(), expected[key], rtol=1e-4, atol=1e-5)


def test_arguments_of_any_strides(device: str) -> None:
    tensors = {key: value.float().to(device) for key, value in attention_inputs(6, "head").items()}
    dense = linear_attention(**tensors, backend="triton")
    strided = {
        "q": tensors["q"].transpose(1, 3).contiguous().transpose(1, 3),
        "k": torch.cat([tensors["k"], tensors["k"]], -1)[..., :5],
        "v": tensors["v"].transpose(1, 2).contiguous().transpose(1, 2),
        "initial_state": tensors["initial_state"].mT.contiguous().mT,
        "log_decay": tensors["log_decay"].transpose(1, 2).contiguous().transpose(1, 2),
    }
    for a, b in zip(dense, linear_attention(**strided, backend="triton")):
        assert torch.equal(a, b)


def test_the_same_twice(device: str) -> None:
    tensors = attention_inputs(7, "head")
    fast = attention(linear_attention, chunk_size=16, backend="triton")
    first, second = (run(fast, tensors, False, torch.float32, device) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_compiles_without_graph_breaks(device: str) -> None:
    tensors = {key: value.float().to(device) for key, value in attention_inputs(5, "head").items()}
    compiled = torch.compile(
        lambda **t: linear_attention(**t, backend="triton"), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(compiled(**tensors), linear_attention(**tensors, backend="triton")):
        torch.testing.assert_close(a, b)


def test_what_triton_cannot_serve(device: str) -> None:
    tensors = {key: value.to(device) for key, value in attention_inputs(4, "head").items()}
    with pytest.raises(
        BackendError, match=r"'triton' cannot be used: .* an argument is torch.float64"
    ):
        linear_attention(**tensors, backend="triton")
    tensors = {key: value.float() for key, value in tensors.items()}
    with pytest.raises(ArgumentError, match="linear_attention: k must"):
        linear_attention(**tensors | {"k": tensors["k"][..., :3]}, backend="triton")
    y, _ = linear_attention(**tensors, backend="reference")
    assert y.isfinite().all()


def test_cpu_tensors_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tensors = {key: value.float() for key, value in attention_inputs(4, "head").items()}
    with pytest.raises(BackendError, match="it runs on CUDA tensors, these are on cpu"):
        linear_attention(**tensors, backend="triton")
