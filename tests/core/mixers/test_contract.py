"""The six laws of the mixer contract, for every registered mixer, in float32 and float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.mixers import Mixer, create_mixer, list_mixers

D_MODEL = 16
# Hyper-parameters that make a mixer small, or that exercise a path that its defaults do not.
SMALL: dict[str, list[dict[str, object]]] = {
    "attention": [{"n_heads": 4, "n_kv_heads": 2}, {"n_heads": 2, "rope_base": None, "bidirectional": True}],
    "local_attention": [{"window": 4, "n_heads": 4, "n_kv_heads": 1}, {"window": 16, "n_heads": 2}],
    "bidirectional": [
        {"mixer": "slstm", "combine": "concat"},
        {"mixer": "local_attention", "mixer_kwargs": {"window": 4}, "tied": ("q_proj", "o_proj")},
    ],
    "slstm": [{}, {"n_heads": 2, "d_conv": 0}],
    "h3": [{"d_state": 8}, {"d_state": 4, "head_dim": 4, "n_ssm": 2, "disc": "zoh"}],
    "hyena": [
        {"l_max": 64, "filter_order": 8},
        {"l_max": 64, "filter_order": 8, "order": 3, "short_filter_order": 4},
    ],
    "long_conv": [{"l_max": 64, "lam": 0.01, "channels": 2}, {"l_max": 3, "lam": 0.01, "smooth_window": 3}],
    "orchid": [
        {"l_max": 64, "filter_order": 8},
        {"l_max": 64, "filter_order": 8, "kind": "corrTime", "transform": "fft"},
    ],
    "sgconv": [
        {"l_max": 64, "kernel_dim": 8},
        {"kernel_dim": 2, "n_scales": 2, "combine": "sum", "channels": 2},
    ],
    "mamba2": [
        {"d_state": 8, "headdim": 8, "chunk_size": 8},
        {"d_state": 3, "headdim": 4, "d_ssm": 24, "ngroups": 2, "norm_before_gate": True, "D_has_hdim": True},
    ],
    "mlstm": [
        {"round_up_to": 16, "chunk_size": 8},
        {"n_heads": 2, "proj_factor": 1.0, "round_up_to": 1, "bias": True},
    ],
    "retention": [{"n_heads": 2, "chunk_size": 8}],
    "gla": [{"n_heads": 2, "chunk_size": 8, "gate_logit_normalizer": 1.0}],
    "delta_net": [{"n_heads": 2, "chunk_size": 8}, {"use_gate": True, "conv_bias": True, "expand_v": 0.5}],
    "gated_delta_net": [{"n_heads": 2, "chunk_size": 8}, {"head_dim": 4, "allow_neg_eigval": True}],
    "gated_delta_product": [
        {"n_heads": 2, "head_dim": 4, "chunk_size": 8},
        {"n_heads": 2, "num_householder": 3, "use_forget_gate": False, "expand_v": 1.0},
    ],
    "kda": [{"n_heads": 2, "chunk_size": 8}, {"head_dim": 4, "expand_v": 2.0, "conv_size": 1}],
    "s4": [{"d_state": 8, "chunk_size": 8}, {"d_state": 6, "init": "legt", "n_ssm": 4, "output": "linear"}],
    "s4d": [{"d_state": 8, "chunk_size": 8}, {"d_state": 6, "init": "ptd", "disc": "bilinear", "n_ssm": 4}],
    "dss": [{"d_state": 4, "chunk_size": 8}, {"d_state": 3, "version": "softmax", "l_max": 50}],
    "s5": [
        {"d_state": 8, "blocks": 2, "chunk_size": 4},
        {"d_state": 6, "init": "ptd", "activation": "full_glu"},
    ],
    "companion": [{"d_state": 4, "chunk_size": 8}, {"d_state": 5, "n_kernels": 4, "closed_loop": True}],
    "mamba": [{"d_state": 4}, {"d_state": 3, "d_conv": 3, "expand": 1}],
}
DTYPES = [torch.float32, torch.float64]
# Relative to the largest value. A few hundred roundings of 6e-8 (float32) or 1e-16 (float64) each.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}

CASES = [(name, kwargs) for name in list_mixers() for kwargs in SMALL.get(name, [{}])]
IDS = [name + "".join(f"-{key}={value}" for key, value in kwargs.items()) for name, kwargs in CASES]
every_mixer = pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
every_causal_mixer = pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        case
        for case in CASES
        if create_mixer(case[0], D_MODEL, **case[1]).causal  # type: ignore[arg-type]
    ],
    ids=[i for i, case in zip(IDS, CASES) if create_mixer(case[0], D_MODEL, **case[1]).causal],  # type: ignore[arg-type]
)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def make(name: str, kwargs: dict[str, object], dtype: torch.dtype) -> Mixer:
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL, **kwargs).to(dtype).eval()
    with torch.no_grad():  # away from zeros and ones, so that no term is absent by its initialisation
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def data(batch: int, length: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(
        batch, length, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def close(actual: Tensor, expected: Tensor, what: str, scale: float = 1.0) -> None:
    assert actual.shape == expected.shape, what
    assert torch.isfinite(torch.view_as_real(expected) if expected.is_complex() else expected).all(), what
    real = torch.float64 if expected.dtype in (torch.float64, torch.complex128) else torch.float32
    bound = scale * TOLERANCE[real] * max(expected.abs().max().item(), 1e-3)
    error = (actual - expected).abs().max().item()
    assert error <= bound, f"{what}: {error:.2e} > {bound:.2e}"


def floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if (v.is_floating_point() or v.is_complex()) and v.numel()}


def total(y: Tensor, state: dict[str, Tensor]) -> Tensor:
    """A scalar that depends on every output and on the final state."""
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))
    loss = (y * weights).sum()
    for value in floats(state).values():
        real = torch.view_as_real(value) if value.is_complex() else value
        # tanh: a running maximum may be -inf at the start, and one large entry must not hide the others.
        loss = loss + 0.1 * torch.tanh(real).sum().to(y.dtype)
    return loss


@every_causal_mixer
@every_dtype
@pytest.mark.parametrize("length", [1, 2, 7, 33])
def test_law_1_chunks_equal_whole(
    name: str, kwargs: dict[str, object], dtype: torch.dtype, length: int
) -> None:
    mixer = make(name, kwargs, dtype)
    x = data(2, length, dtype).requires_grad_()
    whole, last = mixer(x)
    expected = torch.autograd.grad(total(whole, last), [x, *mixer.parameters()], allow_unused=True)
    for cuts in {(length // 2,), (1, length - 1), (length // 3, length // 2)}:
        edges = sorted({0, length, *cuts})
        x2 = x.detach().clone().requires_grad_()
        state, parts = None, []
        for lo, hi in pairwise(edges):
            part, state = mixer(x2[:, lo:hi], state)
            parts.append(part)
        y = torch.cat(parts, 1)
        assert state is not None
        close(y, whole, f"output, cut at {edges}")
        for key, value in floats(state).items():
            close(value, last[key], f"state {key}, cut at {edges}")
        actual = torch.autograd.grad(total(y, state), [x2, *mixer.parameters()], allow_unused=True)
        names = ["x", *(n for n, _ in mixer.named_parameters())]
        for label, a, e in zip(names, actual, expected):
            assert (a is None) == (e is None), label
            if a is not None:
                close(a, e, f"gradient of {label}, cut at {edges}", scale=5)


@every_causal_mixer
@every_dtype
def test_law_2_steps_equal_whole(name: str, kwargs: dict[str, object], dtype: torch.dtype) -> None:
    mixer = make(name, kwargs, dtype)
    x = data(2, 19, dtype)
    with torch.no_grad():
        whole, last = mixer(x)
        state = mixer.init_state(2, dtype=dtype)
        outputs = []
        for t in range(x.shape[1]):
            y_t, state = mixer.step(x[:, t], state)
            outputs.append(y_t)
    close(torch.stack(outputs, 1), whole, "output")
    for key, value in floats(state).items():
        close(value, last[key], f"state {key}")


@every_causal_mixer
@every_dtype
def test_law_3_causality(name: str, kwargs: dict[str, object], dtype: torch.dtype) -> None:
    mixer = make(name, kwargs, dtype)
    x = data(2, 29, dtype)
    with torch.no_grad():
        before, _ = mixer(x)
        for t in (1, 8, 28):
            changed = x.clone()
            changed[:, t:] = 3 * data(2, 29 - t, dtype, seed=5)
            after, _ = mixer(changed)
            close(after[:, :t], before[:, :t], f"output before {t}")
            assert not torch.allclose(after[:, t:], before[:, t:]), "the change was not seen at all"


@every_mixer
@every_dtype
def test_law_4_batch_independence(name: str, kwargs: dict[str, object], dtype: torch.dtype) -> None:
    mixer = make(name, kwargs, dtype)
    x = data(3, 13, dtype)
    with torch.no_grad():
        together, _ = mixer(x)
        changed = x.clone()
        changed[0] = 10 * data(1, 13, dtype, seed=9)[0]
        assert torch.equal(mixer(changed)[0][1:], together[1:]), "a neighbour's values were seen"
        for row in range(3):
            close(mixer(x[row : row + 1])[0][0], together[row], f"row {row} alone")


@every_causal_mixer
@every_dtype
def test_law_5_packing(name: str, kwargs: dict[str, object], dtype: torch.dtype) -> None:
    mixer = make(name, kwargs, dtype)
    lengths = [[1, 9, 5], [7, 2, 6]]
    x = data(2, 15, dtype).requires_grad_()
    ids = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths])
    packed, _ = mixer(x, segment_ids=ids)
    separate = torch.stack(
        [
            torch.cat([mixer(part.unsqueeze(0))[0][0] for part in x[row].split(lengths[row])])
            for row in range(2)
        ]
    )
    close(packed, separate, "output")
    weights = data(2, 15, dtype, seed=3)
    actual = torch.autograd.grad((packed * weights).sum(), [x, *mixer.parameters()], allow_unused=True)
    expected = torch.autograd.grad((separate * weights).sum(), [x, *mixer.parameters()], allow_unused=True)
    for label, a, e in zip(["x", *(n for n, _ in mixer.named_parameters())], actual, expected):
        if e is not None:
            assert a is not None, label
            close(a, e, f"gradient of {label}", scale=5)


@every_causal_mixer
def test_law_5_packing_continues_the_state(name: str, kwargs: dict[str, object]) -> None:
    """Position 0 continues the given state, and the state after the pack is that of its last segment."""
    mixer = make(name, kwargs, torch.float64)
    x = data(1, 12, torch.float64)
    ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        whole, _ = mixer(x[:, :9])
        tail, last = mixer(x[:, 9:])
        _, state = mixer(x[:, :5])
        y, after = mixer(torch.cat([x[:, 5:9], x[:, 9:]], 1), state, ids)
        close(y[:, :4], whole[:, 5:], "first segment, continued")
        close(y[:, 4:], tail, "second segment, reset")
        again = data(1, 3, torch.float64, seed=4)
        close(mixer(again, after)[0], mixer(again, last)[0], "what follows the pack")


@every_causal_mixer
def test_law_6_gradients_of_the_state(name: str, kwargs: dict[str, object]) -> None:
    mixer = make(name, kwargs, torch.float64)
    with torch.no_grad():
        _, state = mixer(data(2, 5, torch.float64, seed=2))
    leaves = {k: v.detach().clone().requires_grad_() for k, v in floats(state).items()}
    assert leaves, "a causal mixer carries a state"
    x = data(2, 6, torch.float64).requires_grad_()

    def run(values: dict[str, Tensor]) -> Tensor:
        y, last = mixer(x, {**state, **values})
        return total(y, last)

    loss = run(leaves)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, retain_graph=True)
    assert any(g is not None and g.abs().max() > 0 for g in gradients), (
        "no gradient reaches the initial state"
    )
    step = 1e-6
    for (key, leaf), gradient in zip(leaves.items(), gradients):
        direction = torch.randn_like(leaf)
        with torch.no_grad():
            up = run({**leaves, key: leaf + step * direction})
            down = run({**leaves, key: leaf - step * direction})
        numeric = ((up - down) / (2 * step)).item()
        product = 0.0 if gradient is None else (gradient.conj() * direction).sum().real.item()
        assert abs(numeric - product) <= 1e-6 * max(1.0, abs(numeric)), f"{key}: {product} against {numeric}"
    _, last = mixer(x, state)
    (through_state,) = torch.autograd.grad(sum(v.abs().tanh().sum() for v in floats(last).values()), [x])
    assert through_state.abs().max() > 0, "the final state is not differentiable"


@every_mixer
def test_200_steps_in_bf16_autocast_stay_finite(name: str, kwargs: dict[str, object]) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL, **kwargs)
    optimiser = torch.optim.AdamW(mixer.parameters(), lr=3e-3)
    for step in range(200):
        x = data(2, 9 + step % 4, torch.float32, seed=step)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = mixer(x)
            loss = (y.float() - x.roll(1, 1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss), f"step {step}"
    assert all(torch.isfinite(p).all() for p in mixer.parameters())
    if mixer.finite_state:  # histories are activations; recurrent states are never below float32
        lowest = [k for k, v in mixer.init_state(1, dtype=torch.bfloat16).items() if "conv" not in k]
        assert all(
            state[k].dtype not in (torch.bfloat16, torch.float16) for k in lowest if k in floats(state)
        )


@every_mixer
def test_state_size_counts_the_state(name: str, kwargs: dict[str, object]) -> None:
    mixer = make(name, kwargs, torch.float32)
    for length in (1, 5, 50):
        _, state = mixer(data(1, length, torch.float32))
        carried = sum(v[0].numel() for v in floats(state).values())
        assert carried <= mixer.state_size(length)
    if mixer.finite_state:
        assert mixer.state_size(5) == mixer.state_size(50)


@pytest.mark.parametrize("name", list_mixers())
@pytest.mark.parametrize("d_model", [0, -4, 2.5, True])
def test_wrong_width_is_refused(name: str, d_model: object) -> None:
    with pytest.raises(ConfigError, match="d_model"):
        create_mixer(name, d_model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_mixers())
def test_unknown_hyper_parameter_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no hyper-parameter 'd_stat'"):
        create_mixer(name, D_MODEL, d_stat=4)


def test_unknown_mixer_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mamba'"):
        create_mixer("mmaba", D_MODEL)
