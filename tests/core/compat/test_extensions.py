"""The compiled extensions' functions, states of packed rows, first-order recurrences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.compat import (
    causal_conv1d_cuda,
    selective_scan_cuda,
    selective_scan_cuda_core,
    selective_scan_cuda_oflex,
)
from longseq.core.compat.accelerated_scan import complex as complex_scan
from longseq.core.compat.accelerated_scan import ref, scalar, warp
from longseq.core.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_varlen_states
from longseq.core.compat.causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states_ref
from longseq.core.compat.mamba_ssm.ops import selective_scan_interface as interface
from longseq.core.errors import ArgumentError

B, D, L, N, W = 2, 6, 13, 4, 4
F64 = torch.float64


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-9)


def scan_arguments() -> dict[str, Any]:
    torch.manual_seed(0)
    rows = {k: torch.randn(B, D, L) for k in ("u", "delta")}
    maps = {k: torch.randn(B, 2, N, L) for k in ("B", "C")}
    vectors = {"D": torch.randn(D), "z": torch.randn(B, D, L), "delta_bias": torch.randn(D)}
    return {**rows, "A": -torch.rand(D, N), **maps, **vectors}


def test_extensions_of_the_scan() -> None:
    given = scan_arguments()
    leaves = {k: v.clone().requires_grad_() for k, v in given.items()}
    y, last = interface.selective_scan_fn(**leaves, delta_softplus=True, return_last_state=True)
    dout = torch.randn_like(y)
    y.backward(dout)
    out, states, gated = selective_scan_cuda.fwd(**given, delta_softplus=True)
    close(gated, y, 1e-6)
    close(states[:, :, -1, 1::2], last, 1e-6)
    assert states[..., ::2].isnan().all()  # the original's private half
    room = torch.empty(B, D, L)
    grads = selective_scan_cuda.bwd(**given, dout=dout, dz=room, delta_softplus=True)
    named = dict(zip(("u", "delta", "A", "B", "C", "D", "delta_bias", "z"), grads))
    for key, grad in named.items():
        close(grad, leaves[key].grad, 1e-5)
    assert named["z"] is room
    *_, again = selective_scan_cuda.bwd(
        **given, dout=dout, delta_softplus=True, recompute_out_z=True
    )
    close(again, y, 1e-6)
    plain = {k: v for k, v in given.items() if k != "z"}
    close(selective_scan_cuda_core.fwd(**plain, delta_softplus=True, nrows=1)[0], out, 1e-6)
    assert len(selective_scan_cuda_core.bwd(**plain, dout=dout, delta_softplus=True)) == 7
    half = {k: v.bfloat16() if v.dim() > 2 else v for k, v in plain.items()}
    for wide, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        y = selective_scan_cuda_oflex.fwd(**half, delta_softplus=True, nrows=1, out_float=wide)[0]
        assert y.dtype == dtype
        grads = selective_scan_cuda_oflex.bwd(**half, dout=torch.ones_like(y), delta_softplus=True)
        assert grads[0].dtype == torch.bfloat16 and grads[2].dtype == torch.float32


def test_extension_of_the_convolution() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(B, D, L), torch.randn(D, W), torch.randn(D)
    past, final = torch.randn(B, D, W - 1), torch.empty(B, D, W - 1)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, past)]
    y, last = causal_conv1d_fn(
        *leaves[:3], initial_states=leaves[3], return_final_states=True, activation="silu"
    )
    out = causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, past, final, True)
    assert torch.equal(out, y) and torch.equal(final, last)
    dout, dfinal, room = torch.randn_like(y), torch.randn_like(last), torch.empty_like(x)
    wanted = torch.autograd.grad([y, last], leaves, [dout, dfinal])
    grads = causal_conv1d_cuda.causal_conv1d_bwd(
        x, weight, bias, dout, None, past, dfinal, room, True, True
    )
    assert grads[0] is room
    for a, b in zip(grads, wanted):
        assert torch.equal(a, b)
    assert causal_conv1d_cuda.causal_conv1d_bwd(
        x, weight, None, dout, None, None, None, None, False, True
    )[2:] == (None, None)
    state = past.clone()
    step = causal_conv1d_cuda.causal_conv1d_update(x[..., :1], state, weight, bias, True)
    close(step, y[..., :1], 1e-6)


def test_states_of_packed_rows() -> None:
    rows = torch.randn(9, D)
    for bounds in ([0, 2, 2, 9], [0, 9], [0, 0], [0, 3]):
        at = torch.tensor(bounds, dtype=torch.int32)
        found = causal_conv1d_varlen_states(rows, at, 4)
        assert torch.equal(found, causal_conv1d_varlen_states_ref(rows, at, 4))
        assert found.stride(1) == 1
    with pytest.raises(ArgumentError, match="cu_seqlens"):
        causal_conv1d_varlen_states(rows, torch.tensor([0, 10]), 4)


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_first_order_recurrences(length: int) -> None:
    torch.manual_seed(0)
    gates, tokens = (torch.rand(B, D, length, dtype=F64) for _ in range(2))
    turned = torch.polar(gates, 6 * tokens)

    def slow(gates: Tensor, tokens: Tensor) -> Tensor:
        x, outputs = torch.zeros(B, D, dtype=torch.promote_types(gates.dtype, tokens.dtype)), []
        for t in range(length):
            x = gates[..., t] * x + tokens[..., t]
            outputs.append(x)
        return torch.stack(outputs, -1)

    for scan in (ref.scan, scalar.scan, warp.scan, complex_scan.scan):
        close(scan(gates, tokens), slow(gates, tokens))
    for scan in (ref.scan, complex_scan.scan):
        close(scan(turned, tokens), slow(turned, tokens))
    back = ref.scan(gates, tokens, reverse=True)
    close(back, slow(gates.flip(-1), tokens.flip(-1)).flip(-1))
    leaves = [t.clone().requires_grad_() for t in (gates, tokens)]
    wanted = torch.autograd.grad(slow(*leaves).square().sum(), leaves)
    for a, b in zip(torch.autograd.grad(scalar.scan(*leaves).square().sum(), leaves), wanted):
        close(a, b)
    assert scalar.scan(gates.bfloat16(), tokens.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ArgumentError, match="gates must have shape"):
        warp.scan(gates[:1], tokens)
