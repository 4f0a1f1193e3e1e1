"""Operators in torch's own operations are the operators."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.portable import doubling_scan, portable
from longseq.core.ops.selective_scan import selective_scan


class Run(torch.nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args):
        return self.call(*args)


def both(call, *args):
    """The results of a call, and those of its exported form, without our operators."""
    program = portable(torch.export.export(Run(call), args))
    graphs = [m.graph for m in program.graph_module.modules() if hasattr(m, "graph")]
    nodes = [node for graph in graphs for node in graph.nodes]
    assert not [n for n in nodes if str(n.target).startswith("longseq.")]
    return call(*args), program.module()(*args)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_doubling_is_the_recurrence(length: int) -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, length, 3, dtype=torch.float64), torch.randn(2, length, 3).double()
    h, states = torch.randn(2, 3).double(), []
    found = doubling_scan(a, b, h)
    for t in range(length):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    torch.testing.assert_close(found, torch.stack(states, 1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_selective_scan(length: int, groups: int) -> None:
    torch.manual_seed(0)
    u, delta, z = (torch.randn(2, length, 4) for _ in range(3))
    B, C = (torch.randn(2, length, groups, 3) for _ in range(2))
    A, D, bias = -torch.rand(4, 3), torch.randn(4), torch.randn(4)

    def call(*args):
        return selective_scan(*args, delta_softplus=True)

    for expected, found in zip(*both(call, u, delta, A, B, C, D, z, bias)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_convolution_and_the_linear_scan() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 4), torch.randn(4, 3), torch.randn(4)
    expected, found = both(lambda *a: causal_conv1d(*a, activation="silu")[0], x, weight, bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected, found = both(lambda a, b: linear_scan(a, b)[0], torch.rand(2, 6, 4), x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 70])
@pytest.mark.parametrize("heads", [2, 4])
def test_linear_attention(length: int, heads: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, length, 2, 4)
    v, g = torch.randn(2, length, heads, 3), -torch.rand(2, length, heads)
    for decay in (None, g, -torch.rand(2, length, 2, 4)):
        args = (q, k, v) if decay is None else (q, k, v, decay)
        for expected, found in zip(*both(lambda *a: linear_attention(*a), *args)):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_another_operator_is_named() -> None:
    node = SimpleNamespace(target="longseq.mlstm.default")
    nested = SimpleNamespace(graph=SimpleNamespace(nodes=[node]))
    modules = [SimpleNamespace(graph=SimpleNamespace(nodes=[])), nested]
    program = SimpleNamespace(graph_module=SimpleNamespace(modules=lambda: modules))
    with pytest.raises(ConfigError, match="mlstm cannot be exported without longseq"):
        portable(program)  # type: ignore[arg-type]
