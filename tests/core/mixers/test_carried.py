"""A carried state of another shape, kind or name is refused by every mixer that takes one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.mixers import Mixer, State, create_mixer, list_mixers
from small_mixers import SMALL

D_MODEL = 16
CASES = [(name, kwargs) for name in list_mixers() for kwargs in SMALL.get(name, [{}])[:1]]


def wrong_states(state: State) -> Iterator[object]:
    """Yields what no mixer may take in place of a state."""
    yield from ({}, (1,), {"foo": torch.zeros(2, 3)}, {**state, "foo": torch.zeros(2, 3)})
    for name, value in state.items():
        other = value.float() if not value.is_floating_point() else value.double()
        yield from (
            {**state, name: value.unsqueeze(1)},
            {**state, name: value[:1]},
            {**state, name: other},
            {**state, name: torch.cat([value, value], -1)},
            {key: kept for key, kept in state.items() if key != name},
            {**state, name: "a word"},
        )
        if value.dim() > 2 and value.shape[2] > 1:
            yield {**state, name: value[:, :, :1]}


@pytest.mark.parametrize("name, kwargs", CASES, ids=[name for name, _ in CASES])
def test_a_foreign_state_is_refused_by_name(name: str, kwargs: dict[str, object]) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL, **kwargs).eval()
    x = torch.randn(2, 9, D_MODEL)
    if not mixer.causal:
        pytest.skip("it carries no state")
    with torch.no_grad():
        _, state = mixer(x)
        for wrong in wrong_states(state):
            with pytest.raises(ArgumentError, match=r": the state"):
                mixer(x, wrong)
            with pytest.raises(ArgumentError, match=r": the state"):
                mixer.step(x[:, 0], wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name, kwargs", CASES, ids=[name for name, _ in CASES])
def test_no_state_is_the_start_for_a_step_too(name: str, kwargs: dict[str, object]) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL, **kwargs).eval()
    if not mixer.causal:
        pytest.skip("it carries no state")
    x = torch.randn(2, D_MODEL)
    with torch.no_grad():
        one, _ = mixer.step(x, None)
        other, _ = mixer.step(x, mixer.init_state(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["mamba2", "delta_net", "attention", "slstm"])
def test_states_of_low_precision_go_on(name: str) -> None:
    mixer, x = create_mixer(name, D_MODEL).eval(), torch.randn(2, 9, D_MODEL)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, state = mixer(x)
        mixer(x, state)
        mixer.step(x[:, 0], state)
    low, x_low = mixer.bfloat16(), x.bfloat16()
    with torch.no_grad():
        _, state = low(x_low)
        low.step(x_low[:, 0], state)


def grown(mixer: Mixer) -> Tensor:
    return mixer.step(torch.zeros(1, D_MODEL), mixer.init_state(1))[0]


def test_a_mixer_that_was_moved_to_another_dtype_takes_its_new_states() -> None:
    mixer = create_mixer("mamba2", D_MODEL).eval()
    with torch.no_grad():
        assert grown(mixer).dtype == torch.float32
        wide = mixer.double()
        _, state = wide(torch.zeros(1, 3, D_MODEL, dtype=torch.float64))
        y, _ = wide.step(torch.zeros(1, D_MODEL, dtype=torch.float64), state)
    assert y.dtype == torch.float64
