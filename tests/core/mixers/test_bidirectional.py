"""The two-way wrapper: directions, packs, shared parameters and refusals."""

from __future__ import annotations

import copy

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer
from longseq.core.mixers.bidirectional import Bidirectional

INNER = {"mixer": "local_attention", "mixer_kwargs": {"window": 4, "n_heads": 2}}


def make(**kwargs: object) -> Bidirectional:
    torch.manual_seed(0)
    mixer = create_mixer("bidirectional", 16, **INNER, **kwargs)
    assert isinstance(mixer, Bidirectional)
    return mixer


def test_each_direction_alone() -> None:
    mixer, x = make(combine="sum"), torch.randn(2, 11, 16)
    ahead, back = mixer.fwd(x)[0], mixer.rev(x.flip(1))[0].flip(1)
    torch.testing.assert_close(mixer(x)[0], ahead + back)
    mixer.combine = "product"
    torch.testing.assert_close(mixer(x)[0], ahead * back)
    mixer = make(combine="concat")
    assert mixer.merge is not None
    expected = mixer.merge(torch.cat([mixer.fwd(x)[0], mixer.rev(x.flip(1))[0].flip(1)], -1))
    torch.testing.assert_close(mixer(x)[0], expected)


def test_sees_both_sides() -> None:
    mixer, x = make(), torch.randn(1, 11, 16)
    changed = x.clone()
    changed[:, 5] += 1.0
    seen = (mixer(x)[0] - mixer(changed)[0]).abs().amax(-1)[0] > 1e-6
    assert seen.tolist() == [False] * 2 + [True] * 7 + [False] * 2


def test_mirrored_input_with_tied_directions_gives_mirrored_output() -> None:
    mixer, x = make(tied=("q_proj", "k_proj", "v_proj", "o_proj")), torch.randn(2, 9, 16)
    torch.testing.assert_close(mixer(x.flip(1))[0], mixer(x)[0].flip(1))


@pytest.mark.parametrize("combine", ["sum", "product", "concat"])
def test_packed_equals_separate(combine: str) -> None:
    mixer, x = make(combine=combine).double(), torch.randn(2, 12, 16, dtype=torch.float64)
    ids = torch.tensor([[0] * 3 + [1] * 8 + [0], [2] * 12])
    packed, _ = mixer(x, segment_ids=ids)
    rows = [[x[:1, :3], x[:1, 3:11], x[:1, 11:]], [x[1:]]]
    separate = torch.cat([torch.cat([mixer(part)[0] for part in row], 1) for row in rows])
    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-13)


def test_tied_parameters_are_one() -> None:
    mixer = make(tied=("q_proj", "o_proj.weight"))
    assert mixer.rev.q_proj.weight is mixer.fwd.q_proj.weight
    assert mixer.rev.o_proj.weight is mixer.fwd.o_proj.weight
    assert mixer.rev.k_proj.weight is not mixer.fwd.k_proj.weight
    names = [name for name, _ in mixer.named_parameters()]
    assert "rev.q_proj.weight" not in names
    assert {"rev.q_proj.weight", "fwd.q_proj.weight"} <= mixer.state_dict().keys()
    twin = copy.deepcopy(mixer).double()
    assert twin.rev.q_proj.weight is twin.fwd.q_proj.weight
    make(tied=("q_proj", "o_proj.weight")).load_state_dict(mixer.state_dict())


def test_state_is_refused() -> None:
    mixer = make()
    assert not mixer.causal
    assert mixer.init_state(3) == {}
    with pytest.raises(ConfigError, match="takes no state"):
        mixer(torch.randn(1, 4, 16), {})
    with pytest.raises(ConfigError, match="takes no state"):
        mixer.step(torch.randn(1, 16), {})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"combine": "summ"}, "did you mean 'sum'"),
        ({"tied": ("q_prj",)}, "did you mean 'q_proj'"),
        ({"tied": "q_proj"}, "sequence of names"),
        ({"mixer": "atention"}, "did you mean 'attention'"),
        ({"mixer": "bidirectional", "mixer_kwargs": INNER}, "must be causal"),
        ({"mixer": "attention", "mixer_kwargs": {"bidirectional": True}}, "must be causal"),
        ({"mixer_kwargs": {"windw": 3}}, "did you mean 'window'"),
    ],
)
def test_wrong_values_are_refused(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_mixer("bidirectional", 16, **{**INNER, **kwargs})
