"""MossFormer's block against its definition."""

from __future__ import annotations

import pytest
import torch

from longseq.audio.separation.mossformer import DepthwiseConv, MossFormerBlock


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_joint_attention_is_its_definition(length):
    torch.manual_seed(0)
    block = MossFormerBlock(6, query=4, chunk=8, kernel=3).double()
    with torch.no_grad():
        block.shift.normal_()
    x = torch.randn(2, length, 6, dtype=torch.float64)
    hidden, z = block.hidden(x), block.shared(x)
    half = torch.arange(2, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * 10000.0 ** (-half / 2)
    q, k, q_all, k_all = (
        torch.view_as_real(
            torch.polar(torch.ones_like(angles), angles)
            * torch.complex(*(z * scale + shift).chunk(2, -1))
        )
        .movedim(-1, -2)
        .flatten(-2)
        for scale, shift in zip(block.scale, block.shift)
    )
    place = torch.arange(length) // 8
    near = place[:, None] == place
    local = torch.relu(q @ k.mT / 8).square() * near
    attended = local @ hidden + (q_all @ k_all.mT / length) @ hidden
    (u, v), (of_u, of_v) = hidden.chunk(2, -1), attended.chunk(2, -1)
    wanted = x + block.out(torch.sigmoid(u * of_v) * v * of_u)
    # The angles are made in float32.
    torch.testing.assert_close(block(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 4, 50])
def test_the_depthwise_convolution_is_centred(length):
    torch.manual_seed(0)
    layer = DepthwiseConv(6, 5).double()
    x = torch.randn(2, length, 6, dtype=torch.float64)
    same = torch.nn.functional.conv1d(x.mT, layer.conv.weight, padding=2, groups=6).mT
    torch.testing.assert_close(layer(x), x + same, rtol=1e-12, atol=1e-12)
