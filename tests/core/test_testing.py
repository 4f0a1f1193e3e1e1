"""The contract kit finds what it is there to find: one mixer per law that breaks just that law."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError
from longseq.core.mixers import Mixer, State
from longseq.core.mixers.base import segment_resets
from longseq.core.mixers.mamba import Mamba
from longseq.core.testing import ContractError, Subject, check_mixer
from longseq.core.testing.input_laws import check_empty, check_finite, check_padding


class Sum(Mixer):
    """A leaky running sum: y_t = W h_t, h_t = λ h_{t-1} + x_t.

    Args:
        d_model: width D.
        leak: λ.
    """

    closed_length: ClassVar[str | None] = "it loops over positions"

    def __init__(self, d_model: int, leak: float = 0.5) -> None:
        super().__init__(d_model)
        self.leak, self.out_proj = leak, nn.Linear(d_model, d_model)

    def init_state(self, batch, device=None, dtype=None) -> State:
        device, dtype = self._where(device, dtype)
        lowest = torch.float64 if dtype == torch.float64 else torch.float32
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=lowest)}

    def forward(self, x: Tensor, state=None, segment_ids=None) -> tuple[Tensor, State]:
        h = (self.init_state(len(x), x.device, x.dtype) if state is None else state)["h"]
        resets, outputs = segment_resets(segment_ids), []
        for t in range(x.shape[1]):
            if resets is not None:
                h = torch.where(resets[:, t : t + 1], 0.0, h)
            h = self.leak * h + x[:, t]
            outputs.append(h)
        return self.out_proj(torch.stack(outputs, 1)), {"h": h}


class ForgetsTheState(Sum):
    def forward(self, x, state=None, segment_ids=None):
        return super().forward(x, None, segment_ids)


class StepsOtherwise(Sum):
    def step(self, x_t, state):
        y, state = super().step(x_t, state)
        return 1.001 * y, state


class LooksAhead(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return y + 0.01 * x.mean(1, keepdim=True), state


class SeesNeighbours(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return y + 1e-3 * x[:1], state


class IgnoresSegments(Sum):
    def forward(self, x, state=None, segment_ids=None):
        return super().forward(x, state)


class CutsTheGradient(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, last = super().forward(
            x, {k: v.detach() for k, v in state.items()} if state else None, segment_ids
        )
        return y, last


class Understates(Sum):
    def state_size(self, length: int) -> int:
        return 1


class Overflows(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return (y * float("inf") if torch.is_autocast_enabled("cpu") else y), state


class PassesByItsMap(Sum):
    def forward(self, x, state=None, segment_ids=None):
        out, self.out_proj.forward = self.out_proj.forward, lambda y: y
        y, state = super().forward(x, state, segment_ids)
        self.out_proj.forward = out
        return nn.functional.linear(y, self.out_proj.weight, self.out_proj.bias), state


class LooksAtValues(Sum):
    def forward(self, x, state=None, segment_ids=None):
        return super().forward(x * float(bool(x[0, 0, 0].item() < 1e9)), state, segment_ids)


class LoopsUnsaid(Sum):
    closed_length = None


class WrongWhenExported(Mamba):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return (1.5 * y if torch.compiler.is_exporting() else y), state


def by_a_matrix(self, x, state=None, segment_ids=None):
    """The whole of it as a masked product, in which zero times NaN is NaN."""
    steps = torch.arange(x.shape[1])
    powers = (steps[:, None] - steps).clamp(min=0)
    weights = torch.where(steps[:, None] >= steps, 0.5**powers, 0.0).to(x.dtype)
    return weights @ x, {"h": x[:, -1]}


class Unguarded(Sum):
    pass


Unguarded.forward = by_a_matrix  # type: ignore[method-assign]


def test_a_mixer_that_obeys_passes() -> None:
    check_mixer(Sum, leak=0.25)
    check_mixer("mamba", d_state=3)
    check_mixer("attention", n_heads=2, bidirectional=True)  # no state: the laws that remain


@pytest.mark.parametrize(
    ("mixer", "law"),
    [
        (ForgetsTheState, "law 1"),
        (StepsOtherwise, "law 2, output"),
        (LooksAhead, "law"),
        (SeesNeighbours, "law 4, a neighbour"),
        (IgnoresSegments, "law 5, output"),
        (CutsTheGradient, "law 1, gradient|law 6"),
        (Understates, "state_size"),
        (Overflows, "bfloat16 training, step 0"),
        (PassesByItsMap, "law 11, forward passes by what is in the place of out_proj"),
        (LooksAtValues, "law 10"),
        (LoopsUnsaid, "law 12.*closed_length of LoopsUnsaid"),
        (WrongWhenExported, "law 12, output, length 8"),
    ],
)
def test_a_broken_law_is_named(mixer: type[Mixer], law: str) -> None:
    with pytest.raises(ContractError, match=law):
        check_mixer(mixer)


def test_an_open_length_is_refused_with_the_reason() -> None:
    length = torch.export.Dim("length", min=8, max=40)
    with pytest.raises(Exception, match=r"Sum: torch\.export cannot leave the len.* it loops"):
        torch.export.export(
            Sum(4), (torch.randn(2, 20, 4),), dynamic_shapes=({1: length},), strict=False
        )
    torch.export.export(Sum(4), (torch.randn(2, 20, 4),), strict=False)  # a known one is no matter


def test_wrong_hyper_parameters_are_no_broken_law() -> None:
    with pytest.raises(
        ConfigError, match="mixer 'Sum' has no hyper-parameter 'laek'; did you mean 'leak'"
    ):
        check_mixer(Sum, laek=0.1)


def test_what_the_guard_keeps_is_missed_without_it() -> None:
    with pytest.raises(ContractError, match="law 7, nan, the sequence behind"):
        check_finite(Subject(Unguarded, {}))
    with pytest.raises((ContractError, TypeError), match="attention_mask"):
        check_padding(Subject(Unguarded, {}))
    with pytest.raises((ContractError, IndexError)):
        check_empty(Subject(Unguarded, {}))


class EachByItself(Mixer):
    """Every position by itself: its state is empty."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.proj = nn.Linear(d_model, d_model)

    def init_state(self, batch, device=None, dtype=None):
        return {}

    def forward(self, x, state=None, segment_ids=None):
        return torch.tanh(self.proj(x)), {}


class ForgetsInSecret(EachByItself):
    """Its state is empty and must not be."""

    def forward(self, x, state=None, segment_ids=None):
        return torch.tanh(self.proj(x)).cumsum(1), {}


def test_a_mixer_without_a_state() -> None:
    check_mixer(EachByItself)
    with pytest.raises(ContractError, match="law 1"):
        check_mixer(ForgetsInSecret)


def test_what_is_no_mixer_is_named() -> None:
    class Short(Sum):
        def forward(self, x):
            return x, {}

    with pytest.raises(ContractError, match=r"Short\.forward must take \(x, state, segment_ids\)"):
        check_mixer(Short)

    class Wide(Mixer):
        def init_state(self, batch, device=None, dtype=None):
            return {}

        def forward(self, x, state=None, segment_ids=None):
            return torch.cat([x, x], -1), {}

    with pytest.raises(ContractError, match=r"Wide\.forward must return y of the shape of x"):
        check_mixer(Wide)
    alone = type("Alone", (Wide,), {"forward": lambda self, x, state=None, segment_ids=None: x})
    with pytest.raises(ContractError, match=r"Alone\.forward must return \(y, state\), and retur"):
        check_mixer(alone)
    with pytest.raises(ConfigError, match="Linear is no Mixer"):
        check_mixer(torch.nn.Linear)  # type: ignore[arg-type]


class Counts(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return y, {**state, "n": x.shape[1]}


class OfAll(Counts):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return y, {"n": torch.tensor(3)}


class Triple(Sum):
    def forward(self, x, state=None, segment_ids=None):
        return *super().forward(x, state, segment_ids), None


class Bare(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, state = super().forward(x, state, segment_ids)
        return y, state["h"]


class Noisy(Sum):
    def forward(self, x, state=None, segment_ids=None):
        return super().forward(x + 0.1 * torch.randn_like(x), state, segment_ids)


class KeepsToItself(Sum):
    calls = 0

    def forward(self, x, state=None, segment_ids=None):
        self.calls += 1
        return super().forward(x * self.calls, state, segment_ids)


class WritesToItsInput(Sum):
    def forward(self, x, state=None, segment_ids=None):
        return super().forward(x.mul_(0.5), state, segment_ids)


class KeepsItsInput(Sum):
    def forward(self, x, state=None, segment_ids=None):
        y, after = super().forward(x, state, segment_ids)
        return y, {**after, "last": x[:, -1]}


@pytest.mark.parametrize(
    ("mixer", "said"),
    [
        (KeepsItsInput, "keeps its input's memory in the state 'last'"),
        (Counts, "the state 'n' must be a tensor, batch first, and is int"),
        (OfAll, r"the state 'n' must be a tensor, batch first, and is one of shape \(\)"),
        (Triple, r"must return \(y, state\), and returned a tuple of 3"),
        (Bare, "must return its state as a dict, and returned Tensor"),
        (Noisy, "gives another output for the same input"),
        (KeepsToItself, "gives another output for the same input"),
        (WritesToItsInput, "changes its input in place"),
    ],
)
def test_what_a_mixer_returns_is_looked_at_before_any_law(mixer: type[Mixer], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        check_mixer(mixer)
