"""Attention: the formula written out, grouped heads, windows, packs and refusals beyond the
contract's."""

from __future__ import annotations

import math
import os
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer
from longseq.core.mixers.attention import Attention
from longseq.core.mixers.local_attention import LocalAttention

CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_TRANSFORMERS")


def by_hand(
    mixer: Attention | LocalAttention, x: Tensor, window: int | None, both_ways: bool = False
) -> Tensor:
    """Every pair of positions by the formula, the rotation as a multiplication of complex
    numbers."""
    batch, length, _ = x.shape
    heads, groups, width = mixer.n_heads, mixer.n_kv_heads, mixer.d_head
    q = mixer.q_proj(x).view(batch, length, heads, width)
    k = mixer.k_proj(x).view(batch, length, groups, width)
    v = mixer.v_proj(x).view(batch, length, groups, width)
    if mixer.rope_base is not None:
        half = width // 2
        angle = torch.arange(length)[:, None] * mixer.rope_base ** (
            -torch.arange(half).double() / half
        )
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        q, k = (torch.complex(part[..., :half], part[..., half:]) * turn for part in (q, k))
        q, k = (torch.cat([part.real, part.imag], -1) for part in (q, k))
    out = torch.zeros_like(q)
    for h in range(heads):
        g = h * groups // heads
        for t in range(length):
            lo = 0 if window is None else max(0, t - window + 1)
            hi = length if both_ways else t + 1
            scores = torch.einsum("bp,bsp->bs", q[:, t, h], k[:, lo:hi, g]) / math.sqrt(width)
            out[:, t, h] = torch.einsum("bs,bsp->bp", scores.softmax(-1), v[:, lo:hi, g])
    return mixer.o_proj(out.flatten(2))


@pytest.mark.parametrize("rope_base", [None, 10_000.0])
@pytest.mark.parametrize("n_kv_heads", [None, 2, 1])
def test_attention_is_the_formula(n_kv_heads: int | None, rope_base: float | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 23, 32, dtype=torch.float64)
    options = {"n_heads": 4, "n_kv_heads": n_kv_heads, "rope_base": rope_base, "bias": True}
    for kwargs, window in [({}, None), ({"bidirectional": True}, None)]:
        mixer = create_mixer("attention", 32, **options, **kwargs).double()
        assert isinstance(mixer, Attention)
        expected = by_hand(mixer, x, window, both_ways=bool(kwargs))
        torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-13)
    for size in (2, 5, 23, 40):
        local = create_mixer("local_attention", 32, window=size, **options).double()
        assert isinstance(local, LocalAttention)
        torch.testing.assert_close(local(x)[0], by_hand(local, x, size), rtol=0, atol=1e-13)


def test_many_query_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.core.mixers.attention._QUERY_BLOCK", 3)
    ids = torch.tensor([[0] * 4 + [1] * 7 + [0] * 2, [5] * 13])
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    for bidirectional in (False, True):
        mixer = create_mixer("attention", 16, n_heads=2, bidirectional=bidirectional).double()
        packed, state = mixer(x, segment_ids=ids)
        rows = [[x[:1, :4], x[:1, 4:11], x[:1, 11:]], [x[1:]]]
        separate = torch.cat([torch.cat([mixer(part)[0] for part in row], 1) for row in rows])
        torch.testing.assert_close(packed, separate, rtol=0, atol=1e-13)
        assert (state == {}) is bidirectional


def test_cache_after_a_pack_holds_the_last_sequence_only() -> None:
    mixer = create_mixer("attention", 16, n_heads=2)
    ids = torch.tensor([[0] * 7 + [1] * 2, [0] * 5 + [1] * 4])
    _, state = mixer(torch.randn(2, 9, 16), segment_ids=ids)
    assert state["k"].shape[1] == 4
    assert state["seen"].tolist() == [2, 4]
    _, state = mixer(torch.randn(2, 3, 16), state)
    assert state["seen"].tolist() == [5, 7]
    _, state = mixer(torch.randn(2, 2, 16), state, torch.tensor([[0, 1], [0, 1]]))
    assert "seen" not in state, "rows of one length again"
    assert state["k"].shape[1] == 1


def test_window_forgets_what_is_outside() -> None:
    mixer = create_mixer("local_attention", 16, window=4, n_heads=2)
    x = torch.randn(1, 12, 16)
    changed = x.clone()
    changed[:, 3] += 1.0
    same = (mixer(x)[0] - mixer(changed)[0]).abs().amax(-1)[0] < 1e-6
    assert same.tolist() == [True] * 3 + [False] * 4 + [True] * 5


def test_long_stream_is_as_exact_as_a_short_one() -> None:
    """The far end of a stream in float32 against the same positions in float64."""
    torch.manual_seed(0)
    mixer = create_mixer("local_attention", 16, window=8, n_heads=2)
    x = torch.randn(1, 3000, 16)
    y, state = mixer(x)
    exact, _ = create_mixer("local_attention", 16, window=8, n_heads=2).double(), None
    exact.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(
        y[:, -20:], exact(x[:, -27:].double())[0][:, -20:].float(), rtol=1e-5, atol=1e-6
    )
    assert state["seen"].tolist() == [7]


def test_bidirectional_takes_no_state() -> None:
    mixer = create_mixer("attention", 16, n_heads=2, bidirectional=True)
    assert not mixer.causal
    assert mixer.init_state(2) == {}
    with pytest.raises(ConfigError, match="takes no state"):
        mixer(torch.randn(1, 3, 16), {})
    with pytest.raises(ConfigError, match="takes no state"):
        mixer.step(torch.randn(1, 16), mixer.init_state(1))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"n_heads": 5}, "n_heads"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"),
        ({"n_heads": 16}, "rotary"),
        ({"n_heads": 2, "d_head": -2}, "head"),
        ({"n_heads": 2, "rope_base": 0.5}, "rope_base"),
        ({"n_heads": 2, "dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_values_are_refused(kwargs: dict[str, object], named: str) -> None:
    for name in ("attention", "local_attention"):
        with pytest.raises(ConfigError, match=named):
            create_mixer(name, 16, **kwargs)


@pytest.mark.parametrize("window", [0, 1, -3, 2.5])
def test_wrong_window_is_refused(window: object) -> None:
    with pytest.raises(ConfigError, match="window"):
        create_mixer("local_attention", 16, window=window)


@pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_TRANSFORMERS names no folder with transformers "
    "(pip install --target FOLDER transformers)",
)
def test_equals_upstream_llama() -> None:
    """Output and gradients of the Llama attention of Hugging Face transformers, with the same
    weights."""
    assert CHECKOUT is not None
    sys.path.insert(0, CHECKOUT)
    from transformers import LlamaConfig  # type: ignore[import-not-found]
    from transformers.models.llama.modeling_llama import (  # type: ignore[import-not-found]
        LlamaAttention,
        LlamaRotaryEmbedding,
    )

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "eager"
    theirs, rotary = LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config)
    ours = create_mixer("attention", 32, n_heads=4, n_kv_heads=2)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 29, 32)
    mask = torch.full((29, 29), -torch.inf).triu(1)[None, None]
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        if layer is ours:
            y = layer(leaf)[0]
        else:
            y = layer(
                leaf, position_embeddings=rotary(leaf, torch.arange(29)[None]), attention_mask=mask
            )[0]
        results.append((y, *torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])))
    for actual, expected in zip(*results):
        error = ((actual - expected).abs().max() / expected.abs().max()).item()
        print(f"{error:.1e}")
        assert error <= 1e-5


@pytest.mark.parametrize("name", ["attention", "local_attention", "forgetting_attention"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_mixer_whose_maps_are_quantised_has_a_start(name: str, kept: bool) -> None:
    """Maps of torch in eight bits keep no parameters; those of other packages keep integers."""
    torch.manual_seed(0)
    mixer = create_mixer(name, 16, **({"n_heads": 2} if name == "attention" else {})).eval()
    x = torch.randn(2, 9, 16)
    y, start = mixer(x)[0], mixer.init_state(2)
    for layer in [one for one in mixer.modules() if isinstance(one, nn.Linear)]:
        run = partial(nn.functional.linear, weight=layer.weight.detach(), bias=layer.bias)
        packed = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
        layer.weight, layer.bias = packed if kept else None, None  # type: ignore[assignment]
        layer.forward = run  # type: ignore[method-assign]
    assert torch.equal(mixer(x)[0], y)
    for key, value in mixer.init_state(2).items():
        assert value.dtype == start[key].dtype
    state, steps = mixer.init_state(2), []
    for x_t in x.unbind(1):
        y_t, state = mixer.step(x_t, state)
        steps.append(y_t)
    torch.testing.assert_close(torch.stack(steps, 1), y)
