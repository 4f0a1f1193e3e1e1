"""The contract kit finds what it is there to find: one mixer per law that breaks just that law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError
from longseq.core.mixers import Mixer, State
from longseq.core.mixers.base import segment_resets
from longseq.core.testing import ContractError, check_mixer


class Sum(Mixer):
    """A leaky running sum: y_t = W h_t, h_t = λ h_{t-1} + x_t.

    Args:
        d_model: width D.
        leak: λ.
    """

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
    ],
)
def test_a_broken_law_is_named(mixer: type[Mixer], law: str) -> None:
    with pytest.raises(ContractError, match=law):
        check_mixer(mixer)


def test_wrong_hyper_parameters_are_no_broken_law() -> None:
    with pytest.raises(
        ConfigError, match="mixer 'Sum' has no hyper-parameter 'laek'; did you mean 'leak'"
    ):
        check_mixer(Sum, laek=0.1)
