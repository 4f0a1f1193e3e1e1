"""What the long-convolution mixers and H3 promise beyond the six laws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer
from longseq.core.mixers.h3 import H3
from longseq.core.mixers.hyena import Hyena
from longseq.core.mixers.long_conv import LongConv
from longseq.core.mixers.orchid import Orchid
from longseq.core.mixers.sgconv import SGConv

FAMILY: list[tuple[type[Mixer], dict[str, Any]]] = [
    (Hyena, {"l_max": 700}),
    (Hyena, {"l_max": 700, "order": 3, "train_freq": False, "num_inner_mlps": 0}),
    (H3, {"d_state": 16}),
    (H3, {"d_state": 8, "head_dim": 2, "measure": "diag-inv"}),
    (LongConv, {"l_max": 50, "lam": 0.0, "weight_init": "double_exp"}),
    (SGConv, {"l_max": 200, "kernel_dim": 16}),
]


def data(length: int, dtype: torch.dtype = torch.float32, batch: int = 2, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, 8, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("cls", "kwargs"), FAMILY)
def test_a_long_sequence_in_uneven_chunks(cls: type[Mixer], kwargs: dict[str, Any]) -> None:
    """Far beyond the kernels' windows, frames of the overlap method and single positions
    included."""
    torch.manual_seed(0)
    mixer = cls(8, **kwargs)
    x = data(611)
    with torch.no_grad():
        whole, last = mixer(x)
        state, parts = None, []
        for part in x.split([300, 1, 7, 200, 1, 102], 1):
            y, state = mixer(part, state)
            parts.append(y)
    assert state is not None
    bound = 2e-5 * whole.abs().max()
    assert (torch.cat(parts, 1) - whole).abs().max() <= bound
    for key, value in last.items():
        assert (state[key] - value).abs().max() <= 2e-5 * value.abs().max(), key
    carried = sum(value[0].numel() for value in last.values())
    assert carried == mixer.state_size(611)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_long_hyena_without_gradients_runs_in_blocks(
    order: int, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mixer = Hyena(8, l_max=700, order=order)
    x = data(611)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        _, start = mixer(data(50, seed=3))
        whole, last = mixer(x, start)
        monkeypatch.setattr("longseq.core.mixers.hyena._POSITIONS", 100)
        monkeypatch.setattr("longseq.core.mixers.hyena._CHANNELS", 3)
        y, state = mixer(x, start)
    bound = 2e-2 if autocast else 2e-6
    assert (y - whole).abs().max() <= bound * whole.abs().max()
    for key, value in last.items():
        assert state[key].shape == value.shape
        assert (state[key] - value).abs().max() <= bound * value.abs().max(), key


@pytest.mark.parametrize(("cls", "kwargs"), FAMILY)
def test_parameters_with_their_own_learning_rate_exist(
    cls: type[Mixer], kwargs: dict[str, Any]
) -> None:
    mixer, marked = cls(8, **kwargs), 0
    for module in mixer.modules():
        for name in getattr(module, "ssm_parameters", ()):
            assert module.get_parameter(name).requires_grad
            marked += 1
    assert marked > 0


def test_hyena_has_the_published_number_of_parameters() -> None:
    """HyenaDNA tiny-1k: 2 layers of width 128, 436,096 in all; less embeddings, norms and MLPs."""
    mixer = Hyena(128, l_max=1026)
    counted = sum(p.numel() for p in mixer.parameters())
    embeddings, norms, mlp = 16 * 128, 4 * 128, 2 * 128 * 512 + 512 + 128
    assert 2 * (counted + norms + mlp) + embeddings + 256 == 436_096


def test_hyena_shorter_inputs_take_the_filters_prefix() -> None:
    mixer = Hyena(8, l_max=64)
    assert torch.allclose(mixer.filter_fn(20), mixer.filter_fn(64)[:, :20], rtol=0, atol=1e-6)


def test_hyena_refuses_more_positions_than_its_table() -> None:
    mixer = Hyena(8, l_max=16)
    with pytest.raises(ConfigError, match=r"17 positions .* l_max = 16"):
        mixer(data(17))
    _, state = mixer(data(16))
    with pytest.raises(ConfigError, match="l_max = 16"):
        mixer.step(data(1)[:, 0], state)
    with pytest.raises(ConfigError, match="l_max = 16"):
        Orchid(8, l_max=16)(data(17))


def test_hyena_keeps_its_filter_only_until_a_parameter_changes() -> None:
    mixer = Hyena(8, l_max=32)
    with torch.no_grad():
        first = mixer.filter_fn(10)
        assert mixer.filter_fn(9).data_ptr() == first.data_ptr(), "computed again"
        twin = copy.deepcopy(mixer)
        mixer.filter_fn.implicit_filter[0].weight.mul_(1.5)  # type: ignore[union-attr, operator]
        assert not torch.allclose(mixer.filter_fn(10), first)
        assert torch.equal(twin.filter_fn(10), first)
        mixer.load_state_dict(twin.state_dict())
        assert torch.equal(mixer.filter_fn(10), first)
        assert mixer.double().filter_fn(10).dtype == torch.float64
    assert mixer.filter_fn(10).requires_grad


def test_hyena_sees_parameters_that_are_changed_past_autograd() -> None:
    """Averages of weights, clipping and optimisers of other packages write to ``.data``."""
    mixer, x = Hyena(8, l_max=32), data(10)
    with torch.no_grad():
        mixer(x)
        for p in mixer.parameters():
            p.data.mul_(0.5)
        found, _ = mixer(x)
        assert torch.equal(found, copy.deepcopy(mixer)(x)[0])


def test_hyenas_of_several_weights_at_once() -> None:
    mixers = [Hyena(8, l_max=32).double() for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(mixers)  # type: ignore[arg-type]
    x = data(10, torch.float64)
    base = copy.deepcopy(mixers[0])  # torch does not put back what a shared module had

    def run(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(base, (weights, buffers), (x,))[0]
        return y

    with torch.no_grad():
        found = torch.func.vmap(run)(weights, buffers)
        torch.testing.assert_close(found, torch.stack([mixer(x)[0] for mixer in mixers]))


def test_hyena_filter_is_computed_in_float32_under_autocast() -> None:
    mixer = Hyena(8, l_max=32)
    exact = mixer.filter_fn(32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer.filter_fn(32), exact)


def test_long_conv_squashes_small_taps_to_zero() -> None:
    mixer = LongConv(8, l_max=20, lam=0.1)
    with torch.no_grad():
        mixer.kernel.kernel.copy_(torch.linspace(-0.3, 0.3, 20).expand(1, 8, 20))
    k = mixer.kernel()[0, 0]
    original = mixer.kernel.kernel[0, 0]
    assert (k[original.abs() < 0.1] == 0).all()
    assert torch.allclose(k.abs(), (original.abs() - 0.1).clamp(min=0))


def test_long_conv_carries_no_more_than_its_window() -> None:
    mixer = LongConv(8, l_max=6)
    assert mixer(data(50))[1]["conv_history"].shape == (2, 5, 8)
    assert mixer.state_size(50) == mixer.state_size(500) == 40


def test_sgconv_kernel_has_unit_norm_and_decays() -> None:
    mixer = SGConv(8, l_max=256, kernel_dim=16)
    k = mixer.kernel()
    assert k.shape == (1, 8, 256) and mixer.n_scales == 5
    assert torch.allclose(k.norm(dim=-1), torch.ones(1, 8))
    assert k[..., :16].abs().mean() > 8 * k[..., 128:].abs().mean()


def test_orchid_mixes_packed_segments_apart_and_takes_no_state() -> None:
    mixer = Orchid(8, l_max=20)
    x = data(17)
    ids = torch.tensor([[0] * 5 + [1] * 7 + [0] * 5, [2] * 12 + [3] * 5])
    packed, state = mixer(x, segment_ids=ids)
    assert state == {}
    for row, lengths in enumerate([[5, 7, 5], [12, 5]]):
        apart = torch.cat([mixer(part.unsqueeze(0))[0] for part in x[row].split(lengths)], 1)
        assert (packed[row] - apart[0]).abs().max() <= 1e-5 * apart.abs().max()
    with pytest.raises(ConfigError, match="no state"):
        mixer(x, {})


@pytest.mark.parametrize(
    ("cls", "kwargs", "match"),
    [
        (Hyena, {"order": 1}, "order"),
        (Hyena, {"l_max": 0}, "l_max"),
        (Hyena, {"emb_dim": 4}, "emb_dim"),
        (Hyena, {"num_inner_mlps": -1}, "num_inner_mlps"),
        (Hyena, {"short_filter_order": 0}, "short_filter_order"),
        (Hyena, {"fast_decay_pct": 0.0}, "fast_decay_pct"),
        (Hyena, {"target": 1.0}, "target"),
        (H3, {"d_state": 7}, "d_state"),
        (H3, {"head_dim": 3}, "head_dim"),
        (H3, {"n_ssm": 3}, "n_ssm"),
        (H3, {"disc": "bilinaer"}, "did you mean 'bilinear'"),
        (H3, {"measure": "diag-lim"}, "did you mean 'diag-lin'"),
        (H3, {"dt_min": 0.2}, "dt_min"),
        (LongConv, {"lam": -1.0}, "lam"),
        (LongConv, {"weight_init": "randon"}, "did you mean 'random'"),
        (LongConv, {"smooth_window": 2}, "smooth_window"),
        (LongConv, {"kernel_dropout": 1.0}, "kernel_dropout"),
        (LongConv, {"dropout": -0.5}, "dropout"),
        (LongConv, {"postact": "none", "channels": 2}, "channels"),
        (SGConv, {"kernel_dim": 0}, "kernel_dim"),
        (SGConv, {"combine": "kat"}, "did you mean 'cat'"),
        (SGConv, {"decay_min": 0.0}, "decay_min"),
        (SGConv, {"dropout": 1.0}, "dropout"),
        (SGConv, {"n_scales": 0}, "n_scales"),
        (Orchid, {"kind": "absfrq"}, "did you mean 'absfreq'"),
        (Orchid, {"transform": "dft"}, "transform"),
        (Orchid, {"conv_filter_size": 4}, "conv_filter_size"),
    ],
)
def test_wrong_hyper_parameters_are_refused(
    cls: type[Mixer], kwargs: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        cls(8, **kwargs)
