"""What a rank's loss weighs in data-parallel training, and what it draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longseq.core.training.rng import RngStream, get_rng_state, set_rng_state
from longseq.core.training.task import BaseTask


class Task(BaseTask):
    """A task without a model."""

    def __init__(self) -> None:
        super().__init__()

    def compute(self, batch: Any) -> dict[str, Any]:
        return {"loss": batch}


def shares(monkeypatch: pytest.MonkeyPatch, losses: list[Any], weights: list[Any]) -> list[Any]:
    """Returns the scaled losses of ranks with so much weight."""
    total = torch.as_tensor(sum(weights)).double()
    strategy = SimpleNamespace(reduce=lambda own, reduce_op: total)
    trainer = SimpleNamespace(world_size=len(weights), strategy=strategy)
    monkeypatch.setattr(Task, "trainer", trainer)
    task = Task()
    return [task._share(loss, weight) for loss, weight in zip(losses, weights)]


def test_the_mean_of_the_ranks_is_that_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(7.0, dtype=torch.float64, requires_grad=True)
    parts = values.split([4, 1, 2])
    own = shares(monkeypatch, [part.square().mean() for part in parts], [4, 1, 2])
    mean = sum(own) / 3
    torch.testing.assert_close(mean, values.square().mean())
    torch.testing.assert_close(torch.autograd.grad(mean, values)[0], 2 * values.detach() / 7)


def test_equal_counts_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = torch.tensor(0.1)
    assert all(torch.equal(one, loss) for one in shares(monkeypatch, [loss] * 3, [7, 7, 7]))
    assert torch.equal(shares(monkeypatch, [loss], [torch.tensor(0)])[0], loss)  # one process


def test_a_mean_over_nothing_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([3.0], requires_grad=True)
    nothing = values[:0].mean() + 0 * values.sum()
    own = shares(monkeypatch, [values.sum(), nothing], [torch.tensor(0.5), torch.tensor(0)])
    assert torch.autograd.grad(own[0] + own[1], values, retain_graph=True)[0].tolist() == [2.0]
    none = shares(monkeypatch, [nothing, nothing], [0, 0])
    assert torch.autograd.grad(none[0], values)[0].tolist() == [0.0]


def test_what_is_no_number_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(monkeypatch, [torch.tensor(torch.nan)] * 2, [3, 4])[1].isnan()


def test_every_rank_draws_for_itself_and_goes_on_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before, drawn = get_rng_state(), []
    try:
        for rank in (None, 0, 1, 2, 1):
            torch.manual_seed(3)
            monkeypatch.setattr(torch.distributed, "is_initialized", lambda r=rank: r is not None)
            monkeypatch.setattr(torch.distributed, "get_rank", lambda r=rank: r)
            stream = RngStream()
            for _ in range(2):
                stream.enter()
                drawn.append(torch.rand(()).item())
                stream.leave()
                torch.rand(5)  # of a validation
    finally:
        set_rng_state(before)
    pairs = list(zip(drawn[::2], drawn[1::2]))
    assert pairs[0] == pairs[1] and pairs[2] == pairs[4]
    assert len({one for pair in pairs[1:4] for one in pair}) == 6
