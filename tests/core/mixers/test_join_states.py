"""States of sequences of different lengths, joined, go on as each would alone: for every mixer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longseq.core import testing
from longseq.core.mixers import list_mixers

SMALL: dict[str, dict[str, Any]] = {
    "attention": {"n_heads": 2, "rope_fraction": 0.5, "out_bias": True},
    "local_attention": {"n_heads": 2, "window": 4, "rope_fraction": 0.5},
    "hyena": {"l_max": 32, "filter_order": 8},
    "long_conv": {"l_max": 6},
    "sgconv": {"l_max": 32, "kernel_dim": 4},
    "parallel": {"mixers": [["mamba", {"d_state": 4}], ["attention", {"n_heads": 2}]]},
    "orchid": {"l_max": 32, "filter_order": 8},
}


@pytest.mark.parametrize("name", list_mixers())
def test_joined_states_go_on_as_alone(name: str) -> None:
    subject = testing.Subject(name, SMALL.get(name, {}))
    mixer = subject.make()
    if not mixer.causal:
        pytest.skip("a mixer that sees the whole sequence at once has no state")
    prompts = [subject.data(2, 7), subject.data(1, 1, seed=2), subject.data(1, 4, seed=3)]
    after = subject.data(4, 3, seed=4)
    with torch.no_grad():
        states = [mixer(prompt)[1] for prompt in prompts]
        state = mixer.join_states(states)
        alone = [
            mixer(part, one)[0] for part, one in zip(after.split([2, 1, 1]), states, strict=True)
        ]
        together, _ = mixer(after, state)
        testing.close(together, torch.cat(alone), "a chunk")
        for t in range(after.shape[1]):
            y, state = mixer.step(after[:, t], state)
            testing.close(y, torch.cat(alone)[:, t], f"step {t}")
