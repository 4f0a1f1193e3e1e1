"""Causal convolution, linear scan and sLSTM in CUDA C++, run by the emulator, against float64
references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.ops import cuda_calls
from longseq.core.ops.causal_conv1d import causal_conv1d_reference
from longseq.core.ops.causal_conv1d import cuda as conv_cuda
from longseq.core.ops.causal_conv1d import torch_op as conv_op
from longseq.core.ops.causal_conv1d.arguments import Arguments as Conv
from longseq.core.ops.linear_scan import linear_scan_reference
from longseq.core.ops.linear_scan import torch_op as linear_op
from longseq.core.ops.linear_scan.arguments import Arguments as Linear
from longseq.core.ops.slstm import cuda as slstm_cuda
from longseq.core.ops.slstm import torch_op as slstm_op
from longseq.core.ops.slstm import walk
from longseq.core.ops.slstm.arguments import Arguments, Kept


def close(actual: Tensor, exact: Tensor, tolerance: float = 1e-5) -> bool:
    error = (actual.to(exact.dtype) - exact).abs().max() / exact.abs().max()
    return bool(error < tolerance)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize(
    ("taps", "given", "length", "dtype"),
    [
        (4, "bir", 75, torch.float32),
        (1, "b", 40, torch.float32),
        (7, "ir", 3, torch.float32),
        (4, "b", 70, torch.bfloat16),
    ],
)
def test_causal_conv(taps: int, given: str, length: int, dtype: torch.dtype, emulator: Any) -> None:
    g = torch.Generator().manual_seed(taps)
    x = torch.randn(2, 130, length, generator=g).to(dtype).transpose(1, 2)[..., 1:]
    weight, bias = torch.randn(129, taps, generator=g), torch.randn(129, generator=g)
    past = torch.randn(2, taps - 1, 129, generator=g).to(dtype) if "i" in given else None
    resets = torch.rand(2, length, generator=g) < 0.1 if "r" in given else None
    arguments = (x, weight, bias if "b" in given else None, past)
    leaves = [None if t is None else t.double().requires_grad_() for t in arguments]
    dy = torch.randn(2, length, 129, generator=g).to(dtype)
    exact = causal_conv1d_reference(*leaves, resets, "silu")
    exact_grads = torch.autograd.grad(exact, [t for t in leaves if t is not None], dy.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    call = Conv(*arguments, resets, True)
    assert close(conv_op._forward_cuda(call), exact.detach(), tolerance)
    grads = conv_op._backward_cuda(conv_op._Incoming(dy), call)
    kept = [grad for grad, t in zip(grads, arguments) if t is not None]
    assert [t.dtype for t in kept] == [t.dtype for t in arguments if t is not None]
    assert all(close(a, b, tolerance) for a, b in zip(kept, exact_grads))


def test_causal_conv_update(emulator: Any) -> None:
    g = torch.Generator().manual_seed(0)
    x, weight, past = (torch.randn(*s, generator=g) for s in ((2, 1, 130), (130, 4), (2, 3, 130)))
    y, after = conv_cuda.update(x[:, 0], weight, None, past, False)
    assert close(y, causal_conv1d_reference(x.double(), weight.double(), None, past.double())[:, 0])
    assert torch.equal(after, torch.cat([past, x], 1)[:, 1:])
    assert conv_cuda.one_position(x, weight, None, past)
    assert not conv_cuda.one_position(x, weight.requires_grad_(), None, past)
    assert not conv_cuda.one_position(x.expand(2, 2, 130), weight, None, past)


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("chunk", [0, 128])
def test_linear_scan(
    complex_: bool, chunk: int, emulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk:
        monkeypatch.setattr(
            cuda_calls, "split", lambda length, *rest: (chunk, (length + chunk - 1) // chunk)
        )
    g = torch.Generator().manual_seed(chunk)
    dtype, length = (torch.complex64 if complex_ else torch.float32), 300 if chunk else 75
    a = torch.rand(1, length, 37, generator=g).expand(2, length, 37)
    if complex_:
        a = torch.polar(a.contiguous(), torch.randn(2, length, 37, generator=g))
    b, first = (torch.randn(*s, generator=g, dtype=dtype) for s in ((2, length, 37), (2, 37)))
    wide = torch.complex128 if complex_ else torch.float64
    leaves = [t.to(wide).detach().requires_grad_() for t in (a, b, first)]
    exact = linear_scan_reference(*leaves)
    dh = torch.randn(2, length, 37, generator=g, dtype=dtype)
    exact_grads = torch.autograd.grad(exact, leaves, dh.to(wide))
    for emulator.order in (0, 1, 2):
        h = linear_op._forward_cuda(Linear(a, b, first))
        assert close(h, exact.detach())
        grads = linear_op._backward_cuda(
            linear_op._Incoming(dh), Linear(a, b, first), linear_op._Saved(h)
        )
        assert all(close(x, y) for x, y in zip(grads, exact_grads))
    assert ("linear_summary" in emulator.launched) == bool(chunk)


def test_linear_scan_in_half_precision_keeps_float32_states(emulator: Any) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (
        torch.rand(1, 20, 3, generator=g).bfloat16(),
        torch.randn(1, 20, 3, generator=g).bfloat16(),
    )
    h = linear_op._forward_cuda(Linear(a, b, None))
    exact = linear_scan_reference(a.double(), b.double())
    assert h.dtype == torch.float32 and close(h, exact)
    into = linear_op._Incoming(torch.ones_like(h))
    da, db, _ = linear_op._backward_cuda(into, Linear(a, b, None), linear_op._Saved(h))
    assert da.dtype == db.dtype == torch.bfloat16 and da.isfinite().all()


@pytest.mark.parametrize(
    ("batch", "width", "multiprocessors", "shared"),
    [(3, 5, 4, 227), (1, 40, 4, 10), (5, 9, 1, 227)],
)
def test_slstm(
    batch: int,
    width: int,
    multiprocessors: int,
    shared: int,
    emulator: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator.multiprocessors = multiprocessors
    monkeypatch.setattr(slstm_cuda, "shared_limit", lambda device: shared * 1024)
    monkeypatch.setattr(slstm_cuda, "reason", lambda tensor: None)
    length, heads, g = 6, 2, torch.Generator().manual_seed(width)
    gates = torch.randn(batch, length, 4, heads, width, generator=g)
    recurrent = torch.randn(heads, 4 * width, width, generator=g) / width**0.5
    first = torch.rand(4, batch, heads, width, generator=g) + 0.5
    first[3, 0] = -torch.inf
    resets = torch.rand(batch, length, generator=g) < 0.2
    hs, last = poisoned(batch, length, heads, width), poisoned(*first.shape)
    saved = poisoned(*walk.saved_shape(gates))
    wide = (gates.double(), recurrent.double(), first.double())
    exact = walk.forward(Arguments(*wide, resets))
    dh, dlast = (torch.randn(t.shape, generator=g) for t in (hs, last))
    exact_kept = Kept(*wide[1:], resets, exact[0], exact[2], exact[2].new_empty(0))
    exact_grads = walk.backward(dh.double(), dlast.double(), exact_kept)
    for emulator.order in (0, 1, 2):
        slstm_cuda.forward(hs, last, saved, Arguments(gates, recurrent, first, resets))
        assert all(close(x, y) for x, y in zip((hs, last, saved), exact))
        kept = Kept(recurrent, first, resets, hs, saved, saved.new_empty(0))
        grads = slstm_op._backward_cuda(slstm_op._Incoming(dh, dlast), kept)
        assert all(close(x, y) for x, y in zip(grads, exact_grads))
