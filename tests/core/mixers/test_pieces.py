"""Long inputs in pieces of time: equal to the whole, for every mixer, pack and start; and no larger
than a piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core import Backbone, LanguageModel
from longseq.core.mixers import create_mixer, list_mixers, pieces
from longseq.core.mixers.base import State
from longseq.core.mixers.guard import MixerCarry
from small_mixers import SMALL

SIZE = 7  # positions of a piece below
LENGTH = 26


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of seven positions for everything longer than that."""
    monkeypatch.setattr(pieces, "WHOLE", 0)
    monkeypatch.setattr(pieces, "PIECE", 0)
    monkeypatch.setattr(pieces, "SHORTEST", SIZE)


class Lengths:
    """The numbers of positions in which a stack's mixers are called.

    Args:
        stack: whose; hooks would have it run whole, so the layers' calls are taken instead.
    """

    def __init__(self, stack: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        for layer in stack.residual_layers():
            self._watch(layer, monkeypatch)

    def _watch(self, layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        run = layer.forward

        def forward(x: Tensor, *rest: Any) -> Any:
            self.seen.append(x.shape[1])
            return run(x, *rest)

        monkeypatch.setattr(layer, "forward", forward)


def close(a: Tensor, b: Tensor) -> None:
    scale = float(b.nan_to_num().abs().max())
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(scale, 1.0), equal_nan=True)


def close_states(model: Any, a: list[State], b: list[State], more: Tensor) -> None:
    """What comes next is the same: some states hold places that are not read."""
    assert len(a) == len(b)
    for one, two in zip(a, b):
        assert one.keys() == two.keys()
    close(whole(model, more, a)[0], whole(model, more, b)[0])


def whole(model: Any, x: Tensor, *rest: Any, **more: Any) -> Any:
    """As one piece, however long it is."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(pieces, "WHOLE", 1 << 40)
        return model(x, *rest, **more)


def stacks() -> Iterator[Any]:
    for name in list_mixers():
        for kwargs in SMALL.get(name, [{}]):
            if create_mixer(name, 16, **kwargs).bounded_state:
                label = name + "".join(f"-{key}={value}" for key, value in kwargs.items())
                yield pytest.param(name, kwargs, id=label)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("name", "kwargs"), list(stacks()))
def test_pieces_are_the_whole(
    name: str, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    stack = Backbone(16, 2, name, kwargs, mlp_ratio=1.0).eval()
    x = torch.randn(3, LENGTH, 16)
    ids = torch.zeros(3, LENGTH, dtype=torch.long)
    ids[0, 7:] += 1  # begins with a piece
    ids[1, 3:] += 1
    ids[1, 14:] += 1
    ids[2, 21:] += 1
    with torch.no_grad():
        before = stack(torch.randn(3, 5, 16))[1]
        calls = Lengths(stack, monkeypatch)
        for arguments in [(None, None), (before, None), (None, ids), (before, ids)]:
            expected, last = whole(stack, x, *arguments)
            calls.seen.clear()
            y, states = stack(x, *arguments)
            assert max(calls.seen) == SIZE and len(calls.seen) == 2 * 4
            close(y, expected)
            close_states(stack, states, last, x[:, :3])
        assert stack(x, None, None, False)[1] == []


@pytest.mark.usefixtures("short")
def test_a_number_that_is_none_reaches_what_comes_after_it_alone() -> None:
    torch.manual_seed(0)
    stack = Backbone(16, 2, "mamba", {"d_state": 4}).eval()
    x = torch.randn(2, LENGTH, 16)
    x[0, 9, 3] = torch.nan
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    ids[0, 14:] = 1
    with torch.no_grad():
        close(stack(x)[0], whole(stack, x)[0])
        y = stack(x, None, ids)[0]
    close(y, whole(stack, x, None, ids)[0])
    assert torch.isnan(y[0, 9:14]).all() and torch.isfinite(y[0, 14:]).all()


@pytest.mark.usefixtures("short")
def test_padding_goes_in_pieces_too() -> None:
    torch.manual_seed(0)
    stack = Backbone(16, 2, "mamba2", {"d_state": 4, "headdim": 8}).eval()
    x = torch.randn(3, LENGTH, 16)
    lengths = [LENGTH, 9, 0]
    with torch.no_grad():
        y, states = stack(x, lengths=lengths)
    expected, last = whole(stack, x, lengths=lengths)
    close(y, expected)
    close_states(stack, states, last, x[:, :3])


@pytest.mark.usefixtures("short")
def test_layers_that_carry_all_there_was_run_whole_between_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    pattern = ["mamba", "mamba", "attention", "s4d", "hyena"]
    stack = Backbone(16, 5, pattern, {"hyena": {"l_max": 64}}, {"hyena": 1.0}).eval()
    calls = Lengths(stack, monkeypatch)
    x = torch.randn(2, LENGTH, 16)
    expected, last = whole(stack, x)
    calls.seen.clear()
    with torch.no_grad():
        y, states = stack(x)
        close(stack(x, keep_states=False)[0], expected)
    close(y, expected)
    close_states(stack, states, last, x[:, :3])
    assert calls.seen[: 8 + 1 + 4 + 1] == [*[7] * 6, 5, 5, LENGTH, 7, 7, 7, 5, LENGTH]
    assert not stack.bounded_state


@pytest.mark.usefixtures("short")
def test_a_language_model_holds_a_piece_and_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = LanguageModel(8, 16, 2, "mamba", {"d_state": 4}, dropout=0.5).eval()
    tokens = torch.randint(8, (2, LENGTH))
    expected, last = whole(model, tokens)
    calls = Lengths(model.backbone, monkeypatch)
    with torch.inference_mode():
        logits, states = model(tokens)
        assert max(calls.seen) == SIZE
        close(logits, expected)
        close_states(model, states, last, tokens[:, :3])
        assert model(tokens, keep_states=False)[1] == []
        head, states = model(tokens[:, :11])
        close(torch.cat([head, model(tokens[:, 11:], states)[0]], 1), expected)
        ids = (torch.arange(LENGTH) // 10).expand(2, -1)
        close(model(tokens, None, ids)[0], whole(model, tokens, None, ids)[0])


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("why", ["gradients", "training", "hooks", "compiler", "short"])
def test_what_runs_whole(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stack = Backbone(16, 1, "mamba", {"d_state": 4}).train(why == "training")
    length = SIZE if why == "short" else LENGTH
    x = torch.randn(1, length, 16)
    calls = Lengths(stack, monkeypatch)
    if why == "hooks":
        stack.layers[0].mixer.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    if why == "compiler":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.set_grad_enabled(why == "gradients"):
        assert pieces.piece_length(stack, x, 16, None) is None
        if why != "compiler":
            stack(x)
            assert calls.seen == [length]


def test_sizes() -> None:
    """Pieces hold four million values, and no batch makes them shorter than 4,096 positions."""
    stack = Backbone(8, 1, "mamba").eval()
    with torch.no_grad():
        for batch, length, width, size in [
            (1, 65_536, 256, None),
            (1, 65_537, 256, 16_384),
            (1, 1_000_000, 768, 5_461),
            (64, 8_192, 128, 4_096),
            (512, 4_096, 128, None),
        ]:
            x = torch.zeros(1, 1, 1).expand(batch, length, 1)
            assert pieces.piece_length(stack, x, width, None) == size
        wrong = torch.zeros(1, 3, dtype=torch.long)
        assert (
            pieces.piece_length(stack, torch.zeros(1, 1, 1).expand(1, 65_537, 1), 256, wrong)
            is None
        )


def test_a_restarted_row_keeps_the_others_and_the_kind() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mamba", 16, d_state=4).to(torch.bfloat16)
    with torch.no_grad():
        state = mixer(torch.randn(2, 5, 16, dtype=torch.bfloat16))[1]
        after = MixerCarry(mixer).restart(state, [True, False])
    start = mixer.init_state(1)
    for key in state:
        assert after[key].dtype == state[key].dtype
        assert torch.equal(after[key][1], state[key][1])
        assert torch.equal(after[key][:1], start[key].to(state[key].dtype))
    assert MixerCarry(mixer).restart(state, [False, False]) is state
