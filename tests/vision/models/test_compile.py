"""``torch.compile``: image models become one graph with the same results.

``python -m longseq.bench.vision_compile`` does it for all registered models.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from longseq.bench import vision_compile
from longseq.vision import create_model
from longseq.vision.models.scan2d import list_orders, scan2d

sys.path.insert(0, str(Path(__file__).parent))
from family import TINY


def models(name: str) -> nn.Module:
    if name in TINY:
        preset, own, _ = TINY[name]
        return create_model(preset, **own)
    return create_model(name, **({"depth": 2} if name == "vim_nano" else {}))


@pytest.mark.parametrize("name", ["vim_nano", "hybrid_pico", "mambavision"])
def test_a_model_is_one_graph(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, images = models(name).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        found = torch.compile(model, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_scan_order_is_traced() -> None:
    torch._dynamo.reset()
    orders = tuple(list_orders())

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        scan = scan2d(orders, 3, 4)
        return scan.merge(scan.expand(x).cumsum(1))

    x = torch.randn(1, 12, 2)
    found = torch.compile(there_and_back, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, there_and_back(x))


def test_the_command_counts_what_fails(capsys, monkeypatch) -> None:
    def check(name: str, backend: str) -> tuple[float, float]:
        if name == "vit_nano":
            raise RuntimeError("no graph\nmore")
        return 1.0, 0.0

    monkeypatch.setattr(vision_compile, "check", check)
    assert vision_compile.main(["--models", "vit*", "--largest", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "fails: RuntimeError: no graph" in lines[0] and "one graph" in lines[1]
    assert "left out" in lines[2]
    assert vision_compile.main(["--models", "vit_pico"]) == 0
