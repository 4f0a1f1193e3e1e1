"""One decoding step by the kernels: equal to the operators at L = 1, and not used where it must not
be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.mixers.base import Mixer, create_mixer
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from longseq.core.ops.cpu_calls import direct_reason
from longseq.core.ops.selective_scan import selective_scan_reference
from longseq.core.ops.ssd import ssd_reference
from longseq.core.ops.state_update import state_update
from longseq.core.ops.state_update.arguments import Arguments
from longseq.core.ops.state_update.cpu import reason

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    assert ((actual - expected).abs() <= tolerance * scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("batch", "width", "groups", "states"), [(1, 1, 1, 1), (3, 300, 2, 16), (2, 34, 1, 19)]
)
@pytest.mark.parametrize("optional", [False, True])
def test_equals_selective_scan(
    isa: str, dtype: torch.dtype, batch: int, width: int, groups: int, states: int, optional: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    state, x, dt, z = (
        normal(batch, width, states),
        *(normal(batch, 2 * width)[:, :width] for _ in range(3)),
    )
    dt = dt / 5 if optional else dt.abs() - 0.1  # without softplus a little growth, too
    A_log, B, C = (
        normal(width, states),
        normal(batch, groups, states),
        normal(batch, groups, states),
    )
    D, bias = (normal(width), normal(width)) if optional else (None, None)
    y, after = state_update(
        state, x, dt, A_log, B, C, D, z if optional else None, bias, optional, log_decay=True
    )
    wide = [None if t is None else t.double() for t in (D, z if optional else None, bias)]
    expected, last = selective_scan_reference(
        x.double().unsqueeze(1),
        dt.double().unsqueeze(1),
        -A_log.double().exp(),
        B.double().unsqueeze(1),
        C.double().unsqueeze(1),
        wide[0],
        None if wide[1] is None else wide[1].unsqueeze(1),
        wide[2],
        delta_softplus=optional,
        initial_state=state.double(),
    )
    close(y, expected.squeeze(1), TOLERANCE[dtype])
    close(after, last, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("heads", "width", "groups", "states"), [(1, 1, 1, 1), (6, 64, 2, 33), (40, 5, 1, 128)]
)
@pytest.mark.parametrize("wide_skip", [False, True])
def test_equals_ssd(
    isa: str, dtype: torch.dtype, heads: int, width: int, groups: int, states: int, wide_skip: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    state, x, dt = normal(2, heads, width, states), normal(2, heads * width), normal(2, heads)
    A, B, C, bias = (
        -normal(heads).exp(),
        normal(2, groups, states),
        normal(2, groups, states),
        normal(heads),
    )
    D = normal(heads * width) if wide_skip else normal(heads)
    y, after = state_update(state, x, dt, A, B, C, D, None, bias, True, (0.2, 1.5))
    expected, last = ssd_reference(
        x.double().view(2, 1, heads, width),
        dt.double().unsqueeze(1),
        A.double(),
        B.double().unsqueeze(1),
        C.double().unsqueeze(1),
        D.double().view(heads, width) if wide_skip else D.double(),
        dt_bias=bias.double(),
        initial_states=state.double(),
        dt_softplus=True,
        dt_limit=(0.2, 1.5),
    )
    close(y, expected.flatten(1), TOLERANCE[dtype])
    close(after, last, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("channels", "taps"), [(1, 1), (17, 4), (70, 32), (5, 2)])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution_step(
    isa: str, dtype: torch.dtype, channels: int, taps: int, activation: str | None
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, channels, generator=g).to(dtype)
    weight, bias = (
        torch.randn(channels, taps, generator=g).to(dtype),
        torch.randn(channels, generator=g).to(dtype),
    )
    expected, last = causal_conv1d(x, weight, bias, activation=activation)  # type: ignore[arg-type]
    state, outputs = torch.zeros(3, taps - 1, channels, dtype=dtype), []
    for t in range(9):
        y, state = causal_conv1d_step(x[:, t], weight, bias, state, activation)  # type: ignore[arg-type]
        outputs.append(y)
    rounding = 2 * torch.finfo(dtype).eps if dtype == torch.bfloat16 else TOLERANCE[dtype]
    close(torch.stack(outputs, 1).double(), expected.double(), rounding)
    assert torch.equal(state, last)


MIXERS: list[tuple[str, dict[str, object]]] = [
    ("mamba", {}),
    ("mamba", {"d_conv": 1, "bias": True, "conv_bias": False}),
    ("mamba2", {"headdim": 4}),
    ("mamba2", {"headdim": 4, "rmsnorm": False, "ngroups": 2, "d_ssm": 16, "D_has_hdim": True}),
    ("slstm", {}),
]


@pytest.mark.parametrize(("name", "options"), MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mixers_step_without_gradients_equals_that_with(
    name: str, options: dict[str, object], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, 24, **options).to(dtype)
    state = mixer.init_state(2)
    fast, slow = dict(state), dict(state)
    for _ in range(4):
        x = torch.randn(2, 24).to(dtype)
        with torch.no_grad():
            y, fast = mixer.step(x, fast)
        expected, slow = Mixer.step(mixer, x, slow)
        bound = 4e-2 if dtype == torch.bfloat16 else TOLERANCE[dtype]
        close(y.double(), expected.detach().double(), bound)
        for key, value in slow.items():
            assert fast[key].dtype == value.dtype
            finite = value.isfinite()
            close(fast[key][finite].double(), value[finite].detach().double(), bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 3, 4, 7, 9])
@pytest.mark.parametrize(
    ("width", "options"),
    [
        (7, {}),
        (33, {"d_state": 5, "bias": True}),
        (100, {"dt_rank": 3, "conv_bias": False, "d_conv": 1}),
    ],
)
def test_the_whole_layers_step(
    isa: str, dtype: torch.dtype, batch: int, width: int, options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mamba", width, **options).to(dtype)
    x = torch.randn(batch, 6, width, dtype=dtype)
    with torch.no_grad():
        expected, last = mixer(x)
        state, outputs = mixer.init_state(batch), []
        for t in range(6):
            y, state = mixer.step(x[:, t].contiguous(), state)
            outputs.append(y)
    close(torch.stack(outputs, 1), expected, 4 * TOLERANCE[dtype])
    for key, value in last.items():
        close(state[key], value, 4 * TOLERANCE[dtype])


def test_a_map_that_is_more_than_a_matrix_is_called() -> None:
    mixer = create_mixer("mamba", 8)
    seen: list[str] = []
    mixer.out_proj.register_forward_hook(lambda *call: seen.append("hook"))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        mixer.step(torch.randn(1, 8), mixer.init_state(1))
    assert seen == ["hook"]
    frozen = create_mixer("mamba", 8).requires_grad_(False)
    frozen.out_proj.weight.requires_grad_(True)  # type: ignore[union-attr, operator]
    y, _ = frozen.step(torch.randn(1, 8), frozen.init_state(1))
    assert y.requires_grad


def direct(*tensors: Tensor | None) -> bool:
    return direct_reason(*tensors) is None


def test_what_must_see_the_operators_gets_them() -> None:
    plain, leaf = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert (
        direct(plain, None)
        and not direct(leaf)
        and not direct(plain, torch.zeros(2, device="meta"))
    )
    with torch.no_grad():
        assert direct(leaf)
        with torch.autocast("cpu", torch.bfloat16):
            assert not direct(plain)
        with torch._subclasses.FakeTensorMode() as mode:
            assert not direct(mode.from_tensor(plain)) and not direct(torch.empty(2))
        seen = []
        torch.func.vmap(lambda t: (seen.append(direct(t)), t)[1])(plain)
        assert seen == [False]


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_gradients_pass_steps_and_wrong_states_are_named(name: str) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, 16)
    x = torch.randn(2, 16, requires_grad=True)
    y, state = mixer.step(x, mixer.init_state(2))
    assert torch.autograd.grad(y.sum(), x)[0].abs().sum() > 0
    named = f"{type(mixer).__name__}: the state 'conv' is that of 2 rows, x has 3"
    with torch.no_grad(), pytest.raises(ArgumentError, match=named):
        mixer.step(torch.randn(3, 16), state)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_steps_compile_whole(name: str) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, 16)
    x, state = torch.randn(2, 16), mixer.init_state(2)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(mixer.step, fullgraph=True, backend="aot_eager")
        close(compiled(x, state)[0], mixer.step(x, state)[0], 1e-5)
    torch._dynamo.reset()


def test_what_does_not_fit_reaches_the_operators_which_name_it() -> None:
    """The kernels read what the sizes say is there: nothing else may reach them."""
    state, x, dt, maps = torch.zeros(2, 6, 4), torch.ones(2, 6), torch.ones(2, 6), torch.ones(2, 4)
    A, wrong = -torch.ones(6, 4), torch.ones(5)
    with pytest.raises(ArgumentError, match="selective_scan: D must have shape"):
        state_update(state, x, dt, A, maps, maps, wrong)
    with pytest.raises(ArgumentError, match="selective_scan: delta_bias must have shape"):
        state_update(state, x, dt, A, maps, maps, dt_bias=wrong)
    with pytest.raises(ArgumentError, match="selective_scan: A must have shape"):
        state_update(state, x, dt, A[:5], maps, maps)
    with pytest.raises(
        ArgumentError, match=r"selective_scan: initial_state is torch\.complex64 but A is"
    ):
        state_update(state.to(torch.complex64), x, dt, A, maps, maps)
    heads = torch.zeros(2, 3, 2, 4)
    with pytest.raises(ArgumentError, match="ssd: dt must have shape"):
        state_update(heads, x, torch.ones(2, 3), -torch.ones(2), maps, maps)
    with pytest.raises(ArgumentError, match="causal_conv1d: bias must have shape"):
        causal_conv1d_step(x, torch.ones(6, 3), wrong, torch.zeros(2, 2, 6))


@pytest.mark.parametrize("limited", [False, True])
def test_the_composed_form_equals_the_kernel(limited: bool) -> None:
    """A decay per channel and a decay per head, through the operators at L = 1."""
    normal = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=normal, dtype=torch.float64)

    limits = (0.3, 0.6) if limited else (0.0, math.inf)
    maps = draw(2, 1, 4), draw(2, 1, 4)
    channels = (
        draw(2, 6, 4),
        draw(2, 6),
        draw(2, 6),
        draw(6, 4),
        *maps,
        draw(6),
        draw(2, 6),
        draw(6),
    )
    heads = (draw(2, 3, 2, 4), draw(2, 6), draw(2, 3), draw(3), *maps, draw(3), draw(2, 6), draw(3))
    for tensors in (channels, heads):
        found = state_update(*tensors, True, limits, True)
        leaves = [x.clone().requires_grad_() for x in tensors]
        # Gradients are wanted, so by the operators.
        wanted = state_update(*leaves, True, limits, True)
        assert wanted[0].requires_grad and not found[0].requires_grad
        for a, b in zip(found, wanted):
            close(a, b.detach(), 1e-12)
        assert all(
            g is not None for g in torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), leaves)
        )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *[("state", shape) for shape in [(3, 8, 5), (2, 9, 5), (2, 8, 6), (2, 2, 8, 5)]],
        *[("x", (3, 8)), ("x", (2, 9)), ("dt", (3, 2)), ("dt", (2, 3)), ("dt", (2, 0))],
        *[("B", (3, 5)), ("B", (2, 6)), ("C", (2, 1, 5)), ("A", (3,)), ("A", (8, 6))],
        *[("D", (3,)), ("dt_bias", (3,)), ("z", (2, 9))],
    ],
)
def test_the_kernel_takes_only_shapes_that_fit(name: str, shape: tuple[int, ...]) -> None:
    """It reads what the sizes say is there: what does not fit must not reach it."""
    good = {"state": (2, 8, 5), "x": (2, 8), "dt": (2, 2), "A": (2,), "B": (2, 5), "C": (2, 5)}
    good |= {"D": (8,), "z": (2, 8), "dt_bias": (2,)}

    def why(shapes: dict[str, tuple[int, ...]]) -> str | None:
        return reason(Arguments(**{key: torch.zeros(size) for key, size in shapes.items()}))

    with torch.no_grad():
        assert why(good) is None
        assert why(good | {"A": (8, 5), "D": (2,)}) is None
        assert why(good | {name: shape}) == "its shapes do not fit one another"
