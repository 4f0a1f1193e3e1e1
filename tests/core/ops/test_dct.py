"""The cosine transform against its sum, and its inverse."""

from __future__ import annotations

import pytest
import torch

from longseq.core.ops.dct import dct, dct_reference, idct


@pytest.mark.parametrize("length", [1, 2, 3, 8, 17, 64])
def test_equals_the_sum_and_inverts(length: int) -> None:
    x = torch.randn(2, 3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dct(x), dct_reference(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(idct(dct(x)), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(dct(x).norm(), x.norm())  # orthonormal
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: idct(dct(v).tanh()), (x,))
