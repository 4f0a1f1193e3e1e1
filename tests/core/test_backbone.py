"""The residual backbone: patterns of mixers, settings of single layers, and errors that name the
fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.backbone import Backbone, read_pattern
from longseq.core.errors import ConfigError

LOCAL = "local_attention"


def windows(backbone: Backbone) -> list[int]:
    return [layer.mixer.window for layer in backbone.layers]  # type: ignore[union-attr,misc]


def test_two_windows_in_one_stack() -> None:
    torch.manual_seed(0)
    pattern: list[Any] = [(LOCAL, {"window": 2}), [LOCAL, {"window": 8, "n_heads": 2}]]
    stack = Backbone(16, 4, pattern, {LOCAL: {"n_heads": 4}})
    assert windows(stack) == [2, 8, 2, 8]
    assert [layer.mixer.n_heads for layer in stack.layers] == [4, 2, 4, 2]  # type: ignore[union-attr]
    x = torch.randn(1, 12, 16)
    whole, _ = stack(x)
    first, states = stack(x[:, :5])
    rest, _ = stack(x[:, 5:], states)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-5, atol=1e-5)


def test_a_pattern_of_pairs_equals_the_same_by_name() -> None:
    torch.manual_seed(0)
    by_name = Backbone(
        16, 2, ["mamba", "s5"], {"mamba": {"d_state": 4}, "s5": {"d_state": 8}}, {"s5": 2.0}
    )
    torch.manual_seed(0)
    by_pair = Backbone(
        16, 2, [["mamba", {"d_state": 4}], ["s5", {"d_state": 8}]], None, {"s5": 2.0}
    )
    for (one, a), (two, b) in zip(by_name.state_dict().items(), by_pair.state_dict().items()):
        assert one == two and torch.equal(a, b)


@pytest.mark.parametrize(
    ("pattern", "kwargs", "says"),
    [
        ([], None, "pattern of mixers is empty"),
        (["mamba"] * 9, None, "a pattern of 9 mixers needs as many layers at least"),
        ([3], None, r'such as \["local_attention", \{"window": 64\}\]; got 3'),
        ([[LOCAL]], None, "a name or a pair"),
        ([[LOCAL, 3]], None, "a name or a pair"),
        ([[LOCAL, {"windw": 3}]], None, "no hyper-parameter 'windw'; did you mean 'window'"),
        ([["locl_attention", {}]], None, "no mixer named 'locl_attention'"),
        (
            [LOCAL, "mamba"],
            [{"window": 4}, {}],
            r'settings of single layers stand in the pattern itself: \[\["lo',
        ),
        ([LOCAL, "mamba"], {"mambo": {}}, "per mixer: did you mean 'mamba'"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Backbone(16, 2, pattern, kwargs)


def test_a_name_is_a_pattern_of_one() -> None:
    assert read_pattern("mamba") == [("mamba", {})]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixer": nn.Linear}, "registered under a name first"),
        ({"mixer": 3}, "a name or a pattern of names"),
        ({"mlp_ratio": [2.0, 1.0]}, "mlp_ratio must be a finite number"),
        ({"mixer_kwargs": {"d_state": "abc"}}, "d_state must be a whole number, got 'abc'"),
    ],
)
def test_wrong_kinds_are_refused_in_one_line(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Backbone(8, 2, **settings)


@pytest.mark.parametrize("pair", ["s5", "mamba", ["mamba"], ["mamba", 3], ["mamba", {}, {}]])
def test_mixers_side_by_side_are_pairs(pair: Any) -> None:
    with pytest.raises(ConfigError, match="pairs of a name and its hyper-parameters"):
        Backbone(16, 1, "parallel", {"mixers": [pair]})
