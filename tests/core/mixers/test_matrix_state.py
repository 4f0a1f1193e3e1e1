"""Mamba-2, mLSTM, retention and GLA beyond the contract: layouts, wrong settings, initial values,
streams."""

from __future__ import annotations

import math

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer
from longseq.core.mixers._gated_norm import GatedRMSNorm

NAMES = ["mamba2", "mlstm", "retention", "gla"]
PUBLISHED = {
    "mamba2": {
        "in_proj.weight": (2 * 64 + 2 * 8 + 4, 32),
        "conv1d.weight": (64 + 2 * 8, 1, 4),
        "conv1d.bias": (64 + 2 * 8,),
        "dt_bias": (4,),
        "A_log": (4,),
        "D": (4,),
        "norm.weight": (64,),
        "out_proj.weight": (32, 64),
    },
    "mlstm": {
        "proj_up.weight": (128, 32),
        "q_proj.weight": (16, 4, 4),
        "k_proj.weight": (16, 4, 4),
        "v_proj.weight": (16, 4, 4),
        "conv1d.conv.weight": (64, 1, 4),
        "conv1d.conv.bias": (64,),
        "mlstm_cell.igate.weight": (4, 192),
        "mlstm_cell.igate.bias": (4,),
        "mlstm_cell.fgate.weight": (4, 192),
        "mlstm_cell.fgate.bias": (4,),
        "mlstm_cell.outnorm.weight": (64,),
        "learnable_skip": (64,),
        "proj_down.weight": (32, 64),
    },
    "retention": {
        "q_proj.weight": (32, 32),
        "k_proj.weight": (32, 32),
        "v_proj.weight": (64, 32),
        "g_proj.weight": (64, 32),
        "g_norm_swish_gate.weight": (8,),
        "o_proj.weight": (32, 64),
    },
    "gla": {
        "q_proj.weight": (16, 32),
        "k_proj.weight": (16, 32),
        "v_proj.weight": (32, 32),
        "g_proj.weight": (32, 32),
        "gk_proj.0.weight": (16, 32),
        "gk_proj.1.weight": (16, 16),
        "gk_proj.1.bias": (16,),
        "g_norm_swish_gate.weight": (8,),
        "o_proj.weight": (32, 32),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_layout_is_the_published_one(name: str) -> None:
    options = {"d_state": 8, "headdim": 16} if name == "mamba2" else {}
    mixer = create_mixer(name, 32, **options)
    assert {key: tuple(value.shape) for key, value in mixer.state_dict().items()} == PUBLISHED[name]
    assert set(mixer.ssm_parameters) <= {key for key, _ in mixer.named_parameters()}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba2", {"headdim": 7}, r"expand · d_model \(32\) must be divisible by headdim \(7\)"),
        (
            "mamba2",
            {"headdim": 16, "ngroups": 3},
            r"number of heads \(2\) must be divisible by ngroups \(3\)",
        ),
        ("mamba2", {"d_state": 0}, "d_state must be an integer of at least 1, got 0"),
        ("mamba2", {"d_ssm": 48}, "d_ssm .48. must be at most"),
        ("mamba2", {"dt_min": 0.2}, "dt_min must be positive and at most dt_max"),
        ("mamba2", {"dt_limit": (1.0, 0.5)}, "dt_limit must be at least 0 and rising"),
        ("mamba2", {"A_init_range": (0.0, 1.0)}, "A_init_range must be positive"),
        ("mamba2", {"chunk_size": 0}, "chunk_size"),
        ("mlstm", {"n_heads": 3}, r"inner width \(64\) must be divisible by n_heads \(3\)"),
        ("mlstm", {"qkv_block": 5}, r"inner width \(64\) must be divisible by qkv_block \(5\)"),
        ("mlstm", {"proj_factor": 0.0}, "proj_factor must be above 0"),
        ("mlstm", {"n_blocks": 0}, "n_blocks"),
        ("mlstm", {"rotary_base": 0.0}, "rotary_base must be above 0"),
        ("mlstm", {"n_heads": 64, "rotary_base": 10.0}, "must be even to be rotated, got 1"),
        (
            "retention",
            {"n_heads": 3},
            r"expand_k · d_model \(16\) must be divisible by n_heads \(3\)",
        ),
        ("retention", {"n_heads": 16}, "must be even to be rotated, got 1"),
        ("retention", {"rotary_base": 0.0}, "rotary_base must be above 0"),
        ("gla", {"expand_v": 0.01}, "expand_v · d_model must be an integer of at least 1, got 0"),
        ("gla", {"n_heads": 3}, r"expand_k · d_model \(8\) must be divisible by n_heads \(3\)"),
        ("gla", {"gate_logit_normalizer": 0.0}, "gate_logit_normalizer must be above 0"),
        ("gla", {"gate_low_rank_dim": -1}, "gate_low_rank_dim"),
    ],
)
def test_wrong_settings_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_mixer(name, 16, **options)


@pytest.mark.parametrize(("d_model", "headdim"), [(64, 64), (24, 48), (37, 37), (67, 2)])
def test_mamba2_finds_a_head_width_for_any_model_width(d_model: int, headdim: int) -> None:
    mixer = create_mixer("mamba2", d_model, d_state=2)
    assert mixer.headdim == headdim
    assert mixer(torch.randn(1, 3, d_model))[0].shape == (1, 3, d_model)


def test_mamba2_initial_steps_and_rates_are_in_range() -> None:
    mixer = create_mixer(
        "mamba2", 64, d_state=2, headdim=1, dt_min=0.01, dt_max=0.02, A_init_range=(2.0, 3.0)
    )
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.00999 < steps.min() < steps.max() < 0.02001
    assert 1.999 < mixer.A_log.exp().min() < mixer.A_log.exp().max() < 3.001


def test_mamba2_without_norm_gates_alone() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mamba2", 8, d_state=3, headdim=4, rmsnorm=False)
    x = torch.randn(2, 9, 8)
    assert not [key for key, _ in mixer.named_parameters() if key.startswith("norm")]
    with torch.no_grad():
        mixer.in_proj.weight[:16] = 0  # z = 0 closes the gate
    assert mixer(x)[0].abs().max() == 0


def test_gated_norm_orders_and_groups() -> None:
    torch.manual_seed(0)
    y, z = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double()
    gate = z * torch.sigmoid(z)
    for before in (True, False):
        norm = GatedRMSNorm(8, groups=2, norm_before_gate=before).double()
        with torch.no_grad():
            norm.weight.copy_(torch.arange(8))
        value = (y if before else y * gate).view(2, 3, 2, 4)
        expected = (value / (value.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(
            2
        ) * norm.weight
        torch.testing.assert_close(norm(y, z), expected * gate if before else expected)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_weights_keep_a_float32_state(name: str) -> None:
    torch.manual_seed(0)
    options = {"d_state": 4} if name == "mamba2" else {}
    mixer = create_mixer(name, 32, **options).bfloat16()
    x = torch.randn(2, 21, 32).bfloat16()
    y, state = mixer(x)
    y_t, _ = mixer.step(x[:, 0], state)
    assert (y.dtype, y_t.dtype) == (torch.bfloat16, torch.bfloat16)
    for key, value in state.items():
        assert value.dtype == mixer.init_state(2)[key].dtype, key
        assert "conv" in key or value.dtype == torch.float32
    exact, _ = mixer.double()(x.double())
    assert (y - exact).abs().max() <= 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", [*NAMES, "parallel"])
def test_compiles_without_graph_breaks(name: str) -> None:
    torch.manual_seed(0)
    small = {"d_state": 4}
    two = {"mixers": [["mamba2", small], ["attention", {"n_heads": 2}]]}
    mixer = create_mixer(name, 16, **{"mamba2": small, "parallel": two}.get(name, {}))
    x = torch.randn(2, 70, 16)
    compiled = torch.compile(mixer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x)[0], mixer(x)[0])


def test_retention_decays_are_those_of_the_paper() -> None:
    """With equal queries and keys of constant direction, the outputs before the norm are geometric
    sums."""
    mixer = create_mixer("retention", 8, n_heads=4, rotary_base=1e12).double()
    with torch.no_grad():
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj):
            projection.weight.fill_(1 / 8)
    _, state = mixer(torch.ones(1, 50, 8).double())
    rate = 1 - 2.0 ** (-5 - torch.arange(4).double())
    # One pair of channels, turned by one radian a position.
    ages = torch.arange(1, 51).double()
    phases = torch.stack([ages.cos() + ages.sin(), ages.cos() - ages.sin()], -1)
    expected = torch.einsum("ht,tk->hk", rate[:, None] ** (ages - 1), phases)
    torch.testing.assert_close(state["kv"][0, :, :, 0], expected, rtol=1e-10, atol=1e-10)


def test_retention_streams_without_a_position_limit() -> None:
    """The state holds no absolute position: far downstream the same inputs give the same
    outputs."""
    torch.manual_seed(0)
    mixer = create_mixer("retention", 16, n_heads=2)
    x = torch.randn(1, 400, 16)
    with torch.no_grad():
        expected, _ = mixer(x)
        _, state = mixer(torch.zeros(1, 100_000, 16))
        late, _ = mixer(x, state)
        whole, _ = mixer(torch.cat([torch.zeros(1, 100_000, 16), x], 1))
    assert (late - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (whole[:, -400:] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_mlstm_starts_with_long_memories() -> None:
    mixer = create_mixer("mlstm", 16)
    bias = mixer.mlstm_cell.fgate.bias
    assert bias.tolist() == pytest.approx([3.0, 4.0, 5.0, 6.0])
    assert mixer.mlstm_cell.fgate.weight.abs().max() == 0
    assert mixer.init_state(3)["m"].tolist() == [[-math.inf] * 4] * 3


@pytest.mark.parametrize("inner", ["mlstm_cell.igate", "mlstm_cell.fgate", "q_proj", "v_proj"])
def test_backward_hooks_of_mlstms_maps_are_called(inner: str) -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mlstm", 16, n_heads=2)
    heard: list[int] = []
    mixer.get_submodule(inner).register_full_backward_hook(lambda *_: heard.append(1))
    mixer(torch.randn(1, 9, 16, requires_grad=True))[0].sum().backward()
    assert heard == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_retention_steps_past_autograd_as_the_operator_does(dtype: torch.dtype) -> None:
    mixer = create_mixer("retention", 256, n_heads=2).to(dtype)  # some rows fill a block
    x, state = torch.randn(9, 256, dtype=dtype), mixer.init_state(9)
    state = {"kv": torch.randn_like(state["kv"])}
    before = state["kv"].clone()
    y, after = mixer.step(x, state)  # with gradients: by the operator
    with torch.no_grad():
        direct, turned = mixer.step(x, state)
    assert torch.equal(state["kv"], before)
    torch.testing.assert_close(direct, y)
    torch.testing.assert_close(turned["kv"], after["kv"])
    assert y.requires_grad and not direct.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_mlstm_steps_past_autograd_as_the_operators_do(dtype: torch.dtype, bias: bool) -> None:
    mixer = create_mixer("mlstm", 48, bias=bias).to(dtype)
    x = torch.randn(3, 9, 48, dtype=dtype)
    state = direct = mixer.init_state(3)
    for t in range(9):
        y, state = mixer.step(x[:, t], state)  # with gradients: by the operators
        with torch.no_grad():
            found, direct = mixer.step(x[:, t], direct)
        torch.testing.assert_close(found, y)
        assert y.requires_grad and not found.requires_grad
    assert direct.keys() == state.keys()
    for name, value in direct.items():
        torch.testing.assert_close(value, state[name])
