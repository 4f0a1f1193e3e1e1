"""The fused functions, norms and steps of Mamba-2's scan: against their parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat.causal_conv1d import causal_conv1d_fn
from longseq.core.compat.mamba_ssm.ops import selective_scan_interface as interface
from longseq.core.compat.mamba_ssm.ops.triton import layer_norm, layernorm_gated, ssd_combined
from longseq.core.compat.mamba_ssm.ops.triton.ssd_chunk_state import (
    chunk_cumsum,
    chunk_state,
    chunk_state_varlen,
)
from longseq.core.compat.mamba_ssm.ops.triton.ssd_state_passing import state_passing
from longseq.core.errors import ArgumentError

B, D, L, N, R, W = 2, 6, 13, 4, 3, 4
F64 = torch.float64


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-9)


def same_gradients(
    run: Callable[..., Tensor], other: Callable[..., Tensor], given: dict[str, Any], **tol: float
) -> None:
    """Results and gradients of two functions of the same arguments."""
    results = []
    for one in (run, other):
        leaves = {
            k: v.detach().clone().requires_grad_() if isinstance(v, Tensor) else v
            for k, v in given.items()
        }
        y = one(**leaves)
        torch.manual_seed(9)
        y.backward(torch.randn_like(y))
        results.append([y.detach(), *[v.grad for v in leaves.values() if isinstance(v, Tensor)]])
    for a, b in zip(*results):
        close(a, b, **tol)


def inner(complex_: bool, constant: str) -> dict[str, Any]:
    torch.manual_seed(0)
    rows = R + (0 if "B" in constant else N) + (0 if "C" in constant else N)
    rows += (rows - R) if complex_ else 0
    kind = torch.complex128 if complex_ else F64
    given: dict[str, Any] = {
        "xz": torch.randn(B, 2 * D, L, dtype=F64),
        "conv1d_weight": torch.randn(D, 1, W, dtype=F64),
        "conv1d_bias": torch.randn(D, dtype=F64),
        "x_proj_weight": torch.randn(rows, D, dtype=F64) / 4,
        "delta_proj_weight": torch.randn(D, R, dtype=F64) / 4,
        "out_proj_weight": torch.randn(5, D, dtype=F64),
        "out_proj_bias": torch.randn(5, dtype=F64),
        "A": -torch.rand(D, N, dtype=kind) - 0.1,
        "D": torch.randn(D, dtype=F64),
        "delta_bias": torch.randn(D, dtype=F64),
    }
    for key in constant:
        given[key] = torch.randn(D, N, dtype=kind)
    return given


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
def test_mamba_inner_fn(complex_: bool, constant: str) -> None:
    def written_out(**g: Any) -> Tensor:
        x, z = g["xz"].chunk(2, 1)
        x = F.silu(F.conv1d(F.pad(x, (W - 1, 0)), g["conv1d_weight"], g["conv1d_bias"], groups=D))
        rows = g["x_proj_weight"] @ x
        delta, rest = g["delta_proj_weight"] @ rows[:, :R], rows[:, R:]
        states = torch.zeros(B, D, N, dtype=g["A"].dtype)

        def map_of(key: str, rest: Tensor) -> tuple[Tensor, Tensor]:
            if key in g:
                return g[key].expand(L, B, D, N).permute(1, 2, 3, 0), rest
            mine, rest = rest[:, : N * (1 + complex_)], rest[:, N * (1 + complex_) :]
            if complex_:
                mine = torch.complex(mine[:, ::2], mine[:, 1::2])
            return mine.unsqueeze(1).expand(B, D, N, L), rest

        map_in, rest = map_of("B", rest)
        map_out, rest = map_of("C", rest)
        step = F.softplus(delta + g["delta_bias"][:, None])
        outputs = []
        for t in range(L):
            states = torch.exp(step[..., t, None] * g["A"]) * states
            states = states + (step * x)[..., t, None] * map_in[..., t]
            y = (states * map_out[..., t]).sum(-1)
            outputs.append(2 * y.real if complex_ else y)
        y = (torch.stack(outputs, -1) + g["D"][:, None] * x) * F.silu(z)
        return F.linear(y.transpose(1, 2), g["out_proj_weight"], g["out_proj_bias"])

    given = inner(complex_, constant)
    same_gradients(interface.mamba_inner_fn, written_out, given)
    same_gradients(interface.mamba_inner_ref, written_out, given)


def test_norms_inside_and_wrong_rows() -> None:
    given = inner(False, "")
    norms = {
        "b_rms_weight": torch.rand(N, dtype=F64),
        "c_rms_weight": torch.rand(N, dtype=F64),
        "dt_rms_weight": torch.rand(D, dtype=F64),
    }

    def by_parts(**g: Any) -> Tensor:
        x, z = g["xz"].chunk(2, 1)
        x = causal_conv1d_fn(x, g["conv1d_weight"][:, 0], g["conv1d_bias"], activation="silu")
        low, b, c = (g["x_proj_weight"] @ x).split([R, N, N], 1)

        def rms(t: Tensor, weight: Tensor) -> Tensor:
            return F.rms_norm(t.transpose(1, 2), t.shape[1:2], weight, 1e-6).transpose(1, 2)

        delta = rms(g["delta_proj_weight"] @ low, g["dt_rms_weight"])
        b, c = rms(b, g["b_rms_weight"]), rms(c, g["c_rms_weight"])
        y = interface.selective_scan_fn(
            x, delta, g["A"], b, c, g["D"], z, g["delta_bias"], delta_softplus=True
        )
        return F.linear(y.transpose(1, 2), g["out_proj_weight"], g["out_proj_bias"])

    same_gradients(interface.mamba_inner_fn, by_parts, {**given, **norms})
    given["x_proj_weight"] = given["x_proj_weight"][1:]
    with pytest.raises(ArgumentError, match=r"x_proj_weight must have 11 rows .* got \(10, 6\)"):
        interface.mamba_inner_fn(**given)


def test_both_directions_and_no_projection() -> None:
    given = {**inner(False, ""), "A_b": -torch.rand(D, N, dtype=F64)}
    same_gradients(interface.bimamba_inner_fn, interface.bimamba_inner_ref, given)
    one = {k: v for k, v in given.items() if k not in ("A_b", "out_proj_weight", "out_proj_bias")}
    y = interface.mamba_inner_fn_no_out_proj(**one)
    given.pop("A_b")
    out = F.linear(y.transpose(1, 2), given["out_proj_weight"], given["out_proj_bias"])
    close(out, interface.mamba_inner_fn(**given))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_mamba_split_conv1d_scan_combined(normed: bool, per_channel: bool) -> None:
    torch.manual_seed(0)
    heads, width, groups = 4, 3, 2
    inner_width, maps = heads * width, 2 * groups * N
    given: dict[str, Any] = {
        "zxbcdt": torch.randn(B, L, 2 * inner_width + maps + heads, dtype=F64),
        "conv1d_weight": torch.randn(inner_width + maps, W, dtype=F64),
        "conv1d_bias": torch.randn(inner_width + maps, dtype=F64),
        "dt_bias": torch.randn(heads, dtype=F64),
        "A": -torch.rand(heads, dtype=F64),
        "D": torch.randn(*((heads, width) if per_channel else (heads,)), dtype=F64),
        "chunk_size": 8,
        "dt_limit": (0.1, 2.0),
        "rmsnorm_weight": torch.randn(inner_width, dtype=F64) if normed else None,
        "outproj_weight": torch.randn(5, inner_width, dtype=F64),
        "headdim": None if per_channel else width,
        "ngroups": groups,
        "norm_before_gate": False,
    }
    # The comparison takes float32 decays: its selective scan is called as the published one is.
    same_gradients(
        ssd_combined.mamba_split_conv1d_scan_combined,
        ssd_combined.mamba_split_conv1d_scan_ref,
        given,
        tolerance=1e-6,
    )
    wide = {**given, "zxbcdt": torch.randn(B, L, 2 * inner_width + maps + heads + 14, dtype=F64)}
    wide["outproj_weight"] = None
    y, final = ssd_combined.mamba_split_conv1d_scan_combined(**wide, return_final_states=True)
    gate, value = wide["zxbcdt"][..., :7], wide["zxbcdt"][..., 7:14]
    close(y[..., :7], F.silu(gate) * value)  # the MLP beside the scan
    rest = {**wide, "zxbcdt": wide["zxbcdt"][..., 14:]}
    close(y[..., 7:], ssd_combined.mamba_split_conv1d_scan_combined(**rest))
    assert final.shape == (B, heads, width, N)
    with pytest.raises(ArgumentError, match="zxbcdt must have"):
        ssd_combined.mamba_split_conv1d_scan_combined(**{**given, "zxbcdt": torch.ones(1, 2, 9)})


def test_the_steps_of_the_chunked_scan() -> None:
    torch.manual_seed(0)
    lengths, heads, width, size = [5, 1, 20, 3], 2, 3, 8
    total = sum(lengths)
    x = torch.randn(1, total, heads, width)
    maps, dt, A = torch.randn(1, total, 1, N), torch.rand(1, total, heads), -torch.rand(heads)
    y = ssd_combined.ssd_chunk_scan_combined_ref(x, dt, A, maps, maps, size)
    close(y, ssd_combined.mamba_chunk_scan(x, dt, A, maps, maps, size), 1e-5)
    close(y, ssd_combined.ssd_selective_scan(x, dt, A, maps, maps), 1e-5)
    bounds = torch.tensor([0, 5, 6, 26, 26, 29])
    seq_idx = torch.tensor([[0] * 5 + [1] + [2] * 20 + [3] * 3])
    _, packed = ssd_combined.mamba_chunk_scan_combined(
        x,
        dt,
        A,
        maps,
        maps,
        size,
        seq_idx=seq_idx,
        cu_seqlens=bounds,
        return_varlen_states=True,
    )
    sums, steps = chunk_cumsum(dt, A, size)
    written = chunk_state(maps, x, steps, sums, seq_idx=seq_idx)
    before, _ = state_passing(written.flatten(3), sums[..., -1], None, seq_idx, size)
    states = chunk_state_varlen(
        maps[0], x[0], steps[0], sums[0], bounds, before.view_as(written)[0]
    )
    assert (packed[3] == 0).all() and (states[3] == 0).all()  # the empty sequence
    close(states, packed, 1e-5)
    for i, (a, b) in enumerate(zip(bounds.tolist(), bounds.tolist()[1:])):
        if a < b:
            part = (t[:, a:b] for t in (x, dt))
            _, alone = ssd_combined.mamba_chunk_scan_combined(
                *part, A, maps[:, a:b], maps[:, a:b], size, return_final_states=True
            )
            close(packed[i], alone[0], 1e-5)
    for wrong in ([0, 5, 4], [1, 29], [0, 30]):
        with pytest.raises(ArgumentError, match="cu_seqlens must rise from 0"):
            ssd_combined.mamba_chunk_scan_combined(
                x, dt, A, maps, maps, 8, cu_seqlens=torch.tensor(wrong), return_varlen_states=True
            )


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sum_and_norm(rms: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(B, L, D, dtype=dtype), torch.randn(B, L, D)
    weight, bias, weight1 = (torch.randn(D) for _ in range(3))
    run = layer_norm.rms_norm_fn if rms else layer_norm.layer_norm_fn
    expected = layer_norm.rms_norm_ref if rms else layer_norm.layer_norm_ref
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
    y, second, total = run(x, weight, bias, residual, weight1=weight1, prenorm=True)
    assert y.dtype == second.dtype == dtype and total.dtype == torch.float32
    wanted = expected(x.float(), weight, bias, residual, weight1=weight1, prenorm=True)
    for a, b in zip((y, second, total), wanted):
        close(a.float(), b, tolerance)
    assert torch.equal(run(x, weight, None, prenorm=True)[1], x)  # nothing was added
    assert run(x, weight, None, prenorm=True, residual_in_fp32=True)[1].dtype == torch.float32
    scale = torch.rand(B, L)
    close(
        run(x, weight, bias, rowscale=scale).float(),
        expected(x.float() * scale[..., None], weight, bias),
        tolerance,
    )
    torch.manual_seed(1)
    y, total, kept, _ = run(x, weight, bias, dropout_p=0.5, prenorm=True, return_dropout_mask=True)
    assert torch.equal(total, torch.where(kept, 2 * x, 0)) and 0.2 < kept.float().mean() < 0.8
    with pytest.raises(ArgumentError, match="residual must have x's shape"):
        run(x, weight, bias, residual[:, 1:])
    matrix = torch.randn(3, D, dtype=dtype)
    out, total = layer_norm.layer_norm_linear_fn(
        x, weight, bias, matrix, None, residual, prenorm=True, is_rms_norm=rms
    )
    assert torch.equal(out, F.linear(run(x, weight, bias, residual), matrix))
    module = layer_norm.RMSNorm(D)
    close(module(x).float(), F.rms_norm(x.float(), (D,), eps=1e-5), tolerance)


@pytest.mark.parametrize("gate", [None, "before", "after"])
@pytest.mark.parametrize("size", [None, 3])
def test_gated_norms(gate: str | None, size: int | None) -> None:
    torch.manual_seed(0)
    x, z = (torch.randn(B, L, D, dtype=F64) for _ in range(2))
    weight, bias = (torch.randn(D, dtype=F64) for _ in range(2))
    options: dict[str, Any] = {
        "z": None if gate is None else z,
        "group_size": size,
        "norm_before_gate": gate != "before",
        "eps": 1e-5,
    }
    for shift in (None, bias):
        y = layernorm_gated.rmsnorm_fn(x, weight, shift, **options)
        # The comparison raises to float32.
        close(y, layernorm_gated.rms_norm_ref(x, weight, shift, **options), 1e-6)
        value = x * F.silu(z) if gate == "before" else x
        parts = F.layer_norm(value.unflatten(-1, (-1, size or D)), (size or D,), eps=1e-5)
        wanted = parts.flatten(2) * weight + (0 if shift is None else shift)
        wanted = wanted * F.silu(z) if gate == "after" else wanted
        close(layernorm_gated.layernorm_fn(x, weight, shift, **options), wanted)
    with pytest.raises(ArgumentError, match="group_size 4 does not divide"):
        layernorm_gated.rmsnorm_fn(x, weight, None, group_size=4)
