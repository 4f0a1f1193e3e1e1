"""Small faults of operators that a sample of mutants found unnoticed (docs/reliability.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longseq.core.errors import ArgumentError
from longseq.core.ops import cpu_calls, dplr
from longseq.core.ops.block_linear import block_linear, composed
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.fft_conv import cpu as fft_cpu
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.gated_conv import gated_conv
from longseq.core.ops.linear_scan import linear_scan, linear_scan_reference
from longseq.core.ops.mamba_step import MambaLayer
from longseq.core.ops.mamba_step import cpu as step_cpu
from longseq.core.ops.mamba_step.arguments import Arguments
from longseq.core.ops.portable import portable
from longseq.core.ops.selective_scan import selective_scan


def _near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_scan_of_rows_without_channels() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(2, 9).double(), torch.randn(2, 9).double()
    _near(linear_scan(a, b)[0], linear_scan_reference(a, b))


def test_a_program_of_one_state() -> None:
    """One state has a form of its own."""
    torch.manual_seed(0)
    u, delta = torch.randn(1, 6, 4).double(), torch.rand(1, 6, 4).double()
    A, B, C = -torch.rand(4, 1).double(), torch.randn(1, 6, 1).double(), torch.randn(1, 6, 1)

    class Run(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return selective_scan(*args)

    args = (u, delta, A, B, C.double())
    program = portable(torch.export.export(Run(), args))
    _near(program.module()(*args), selective_scan(*args))


def test_maps_of_more_blocks_than_one_product_takes() -> None:
    """64 channels make one product: 32 blocks of 4 need two."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 80, 128).double(), torch.randn(32, 4, 4).double()
    _near(composed.one(x, weight), block_linear(x, weight, backend="reference")[0])


def _gradients(kernel: Tensor, u: Tensor, backend: Any) -> list[Tensor]:
    k, x = kernel.detach().requires_grad_(), u.detach().requires_grad_()
    y = fft_conv(x, k[:, ::2] if kernel.shape[1] > 8 else k, backend=backend)
    return [y, *torch.autograd.grad(y.square().sum(), (x, k))]


@pytest.mark.parametrize(("length", "taps"), [(12, 40), (3000, 4)])
def test_a_kernel_with_gaps_and_one_far_shorter_than_the_input(length: int, taps: int) -> None:
    torch.manual_seed(0)
    u, kernel = torch.randn(1, length, 2).double(), torch.randn(2, taps).double()
    for found, wanted in zip(_gradients(kernel, u, "cpu"), _gradients(kernel, u, "reference")):
        _near(found, wanted)


def test_sizes_of_transforms_are_the_smallest() -> None:
    sizes = sorted(m << k for m in (1, 3, 5, 9, 15) for k in range(9))
    for n in range(1, 500):
        assert fft_cpu.field_size(n) == next(size for size in sizes if 2 * size >= n)


def test_threads_are_taken_where_they_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert [cpu_calls.threads(n) for n in (0, (1 << 16) - 1, 1 << 16)] == [1, 1, 3]


def test_resets_may_be_integers() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 3), torch.randn(3, 4)
    resets = torch.rand(2, 9) < 0.4
    wanted = causal_conv1d(x, weight, resets=resets)
    for kind in (torch.int64, torch.uint8):
        found = causal_conv1d(x, weight, resets=resets.to(kind))
        for one, other in zip(found, wanted):
            assert torch.equal(one, other)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_skip_of_another_width_is_refused(width: int) -> None:
    x, weight, kernel = torch.randn(1, 8, 12), torch.randn(12, 3), torch.randn(4, 8)
    with pytest.raises(ArgumentError, match=r"skip must be \(4,\)"):
        gated_conv(x, weight, None, kernel, torch.randn(width))


def test_a_step_of_shapes_that_do_not_fit_is_not_taken() -> None:
    def call(states: int) -> Arguments:
        linear = [
            nn.Linear(i, o, bias=b).requires_grad_(False)
            for i, o, b in ((16, 64, False), (32, 9, False), (1, 32, True), (32, 16, False))
        ]
        taps, bias, skip = torch.randn(32, 1, 4), torch.randn(32), torch.randn(32)
        decay = torch.randn(32, 4)
        # x_proj makes the step's rank (1), B and C: with other states it does not fit.
        linear[1] = nn.Linear(32, 1 + 2 * states, bias=False).requires_grad_(False)
        layer = MambaLayer(linear[0], taps, bias, linear[1], linear[2], decay, skip, linear[3])
        return Arguments(torch.randn(1, 16), torch.randn(1, 3, 32), torch.randn(1, 32, 4), layer)

    assert step_cpu.reason(call(4)) is None
    assert step_cpu.reason(call(3)) == "its shapes do not fit one another"


def test_the_last_state_of_an_exported_rule_has_the_precision_of_the_first() -> None:
    rows = torch.randn(1, 8, 2, 4)
    first = torch.randn(1, 2, 4, 4).double()
    call = dplr._Open(rows, rows, rows, rows, rows, -rows.abs(), first, None, 1.0, 4)
    for found, wanted in zip(dplr._empty(call), dplr._whole(call)):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
