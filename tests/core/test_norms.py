"""The norms of the backbone: torch's weights and results by our kernels."""

from __future__ import annotations

import torch

from longseq.core.norms import RMSNorm


def test_the_module_is_torchs_with_the_same_weights() -> None:
    ours, torchs = RMSNorm(12, eps=1e-5), torch.nn.RMSNorm(12, eps=1e-5)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 5, 12, generator=generator), torch.randn(12, generator=generator)
    torchs.load_state_dict({"weight": weight})
    ours.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(ours(x), torchs(x))
