"""EfficientVMamba: the atrous scan equals four plain scans of a quarter of the map each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.ops.selective_scan import selective_scan_reference
from longseq.vision import create_model
from longseq.vision.models.efficientvmamba import AtrousScan


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (1, 1), (1, 4)])
def test_atrous_scans_equal_the_obvious_loop(height: int, width: int) -> None:
    torch.manual_seed(0)
    layer = AtrousScan(4, 2, 1.5).double()
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    high, wide = height + height % 2, width + width % 2
    whole = x.new_zeros(2, high, wide, 6)
    whole[:, :height, :width] = x
    out = torch.zeros_like(whole)
    firsts = ((0, 0, "rows"), (1, 0, "columns"), (0, 1, "rows"), (1, 1, "columns"))
    for k, (row, column, by) in enumerate(firsts):
        places = [(i, j) for i in range(row, high, 2) for j in range(column, wide, 2)]
        if by == "columns":
            places.sort(key=lambda place: place[::-1])
        u = torch.stack([whole[:, i, j] for i, j in places], 1)
        dt, B, C = (u @ layer.x_proj_weight[k].mT).split([layer.dt_rank, 2, 2], -1)
        own = slice(6 * k, 6 * k + 6)
        y, _ = selective_scan_reference(
            u,
            dt @ layer.dt_projs_weight[k].mT,
            -layer.A_logs[own].exp(),
            B,
            C,
            layer.Ds[own],
            delta_bias=layer.dt_projs_bias[k],
            delta_softplus=True,
        )
        for t, (i, j) in enumerate(places):
            out[:, i, j] = y[:, t]
    expected: Tensor = layer.out_norm(out[:, :height, :width])
    torch.testing.assert_close(layer.scan(x), expected, rtol=1e-10, atol=1e-10)


def test_an_mlp_and_other_stages_are_options() -> None:
    sizes = {"dims": (16, 24), "depths": (1, 1)}
    x = torch.randn(1, 3, 16, 20)
    for scans in (0, 1, 2):
        model = create_model("efficientvmamba_tiny", scans=scans, mlp_ratio=2.0, **sizes)
        assert model(x).shape == (1, 1000)
    with pytest.raises(ConfigError, match="scans must lie between 0 and 2"):
        create_model("efficientvmamba_tiny", scans=3, **sizes)
