"""What all operators have in common: resets of integers, activation checkpointing, the meta
device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longseq.core.errors import ArgumentError
from longseq.core.ops.block_linear import block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference
from longseq.core.ops.delta_rule import delta_rule, delta_rule_reference
from longseq.core.ops.dplr import dplr, dplr_reference
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.gated_conv import gated_conv
from longseq.core.ops.gated_norm import gated_layer_norm, gated_rms_norm
from longseq.core.ops.glu import biased_glu
from longseq.core.ops.linear_attention import linear_attention, linear_attention_reference
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.lti import lti_scan, lti_scan_reference
from longseq.core.ops.mlstm import mlstm, mlstm_reference
from longseq.core.ops.precision import autocast_dtype, autocast_off
from longseq.core.ops.rms_norm import add_rms_norm, rms_norm
from longseq.core.ops.selective_scan import selective_scan, selective_scan_reference
from longseq.core.ops.slstm import slstm, slstm_reference
from longseq.core.ops.ssd import ssd, ssd_reference

B, L, H, P, N = 2, 70, 2, 64, 4


def arguments(name: str, device: str = "cpu") -> list[Tensor]:
    """The tensors that a call of an operator needs, small ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    rows, gates, keys = normal(B, L, H, P), normal(B, L, H), normal(B, L, H, N)
    flat, wide = normal(B, L, P), normal(B, L, 3 * P)
    return {
        "selective_scan": [
            flat,
            flat.sigmoid(),
            -normal(P, N).exp(),
            normal(B, L, N),
            normal(B, L, N),
        ],
        "ssd": [rows, gates.sigmoid(), -normal(H).exp(), keys, normal(B, L, H, N)],
        "linear_attention": [keys, normal(B, L, H, N), rows, -gates.exp()],
        "delta_rule": [
            keys,
            torch.nn.functional.normalize(normal(B, L, H, N), dim=-1),
            rows,
            gates.sigmoid(),
        ],
        "dplr": [keys, normal(B, L, H, N), rows, keys / 4, normal(B, L, H, N) / 4, -keys.exp()],
        "mlstm": [keys, normal(B, L, H, N), rows, gates, normal(B, L, H)],
        "slstm": [normal(B, L, 4, H, N), normal(H, 4 * N, N)],
        "lti_scan": [flat, normal(P, N).sigmoid(), normal(P, N), normal(P, N)],
        "causal_conv1d": [flat, normal(P, 3)],
        "linear_scan": [flat.sigmoid(), normal(B, L, P)],
        "fft_conv": [flat, normal(P, L)],
        "gated_conv": [wide, normal(3 * P, 3), normal(3 * P), normal(P, L)],
        "gated_rms_norm": [flat, normal(B, L, P), normal(P)],
        "gated_layer_norm": [flat, normal(B, L, P), normal(P), normal(B, L, P), normal(P)],
        "rms_norm": [flat, normal(P)],
        "add_rms_norm": [flat, normal(B, L, P), normal(P)],
        "biased_glu": [flat, normal(P)],
        "block_linear": [flat, normal(P // 4, 4, 4)],
    }[name]


WITH_RESETS: dict[str, Callable[..., Any]] = {
    "selective_scan": selective_scan,
    "ssd": ssd,
    "linear_attention": linear_attention,
    "delta_rule": delta_rule,
    "dplr": dplr,
    "mlstm": mlstm,
    "slstm": slstm,
    "lti_scan": lti_scan,
    "causal_conv1d": causal_conv1d,
}
REFERENCES: dict[str, Callable[..., Any]] = {
    "selective_scan": selective_scan_reference,
    "ssd": ssd_reference,
    "linear_attention": linear_attention_reference,
    "delta_rule": delta_rule_reference,
    "dplr": dplr_reference,
    "mlstm": mlstm_reference,
    "slstm": slstm_reference,
    "lti_scan": lti_scan_reference,
    "causal_conv1d": causal_conv1d_reference,
}
OPERATORS: dict[str, Callable[..., Any]] = {
    **WITH_RESETS,
    "linear_scan": linear_scan,
    "fft_conv": fft_conv,
    "gated_conv": gated_conv,
    "gated_rms_norm": gated_rms_norm,
    "gated_layer_norm": gated_layer_norm,
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "biased_glu": biased_glu,
    "block_linear": block_linear,
}


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in flat(part)]


@pytest.mark.parametrize("table", [WITH_RESETS, REFERENCES], ids=["operator", "reference"])
@pytest.mark.parametrize("name", WITH_RESETS)
def test_resets_are_bools_or_integers_everywhere(
    name: str, table: dict[str, Callable[..., Any]]
) -> None:
    operator, given = table[name], arguments(name)
    resets = torch.zeros(B, L, dtype=torch.bool)
    resets[0, [3, 40]] = resets[1, 69] = True
    expected = flat(operator(*given, resets=resets))
    plain = flat(operator(*given))
    assert any(not torch.equal(a, b) for a, b in zip(expected, plain))  # or the test could not fail
    for kind in (torch.int64, torch.int32, torch.uint8):
        found = flat(operator(*given, resets=7 * resets.to(kind)))
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    with pytest.raises(
        ArgumentError, match=f"{name}: resets must be bool or integer, got torch.float32"
    ):
        operator(*given, resets=resets.float())
    with pytest.raises(
        ArgumentError, match=rf"{name}: resets must have shape \(2, 70\) = \(batch, length\)"
    ):
        operator(*given, resets=resets[:, 1:])
    with pytest.raises(ArgumentError, match=f"{name}: resets must be a bool tensor, got list"):
        operator(*given, resets=[[0] * L] * B)


@pytest.mark.parametrize("name", OPERATORS)
def test_activations_can_be_computed_again(name: str) -> None:
    """Checkpointing lets an operator's backward look at what was saved once only."""
    leaves = [x.clone().requires_grad_() for x in arguments(name)]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(OPERATORS[name](*values)))

    def gradients(outputs: Any) -> tuple[Tensor | None, ...]:
        loss = torch.stack(
            [x.sum() for x in outputs if x.requires_grad and bool(x.isfinite().all())]
        ).sum()
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    found = gradients(checkpoint(run, *leaves, use_reentrant=False))
    for a, b in zip(found, gradients(run(*leaves))):
        assert (a is None) == (b is None) and (a is None or b is None or torch.equal(a, b))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_on_the_meta_device(name: str, backend: str) -> None:
    real = flat(OPERATORS[name](*arguments(name)))
    found = flat(OPERATORS[name](*arguments(name, "meta"), backend=backend))
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in real]
    assert all(x.is_meta for x in found)


def test_the_meta_device_has_no_autocast_to_leave() -> None:
    here, nowhere = torch.ones(2, 2), torch.ones(2, 2, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype(here) == torch.bfloat16 and autocast_dtype(nowhere) is None
        assert (here @ here).dtype == torch.bfloat16
        with autocast_off(here):
            assert autocast_dtype(here) is None and (here @ here).dtype == torch.float32
        with autocast_off(nowhere):
            assert (nowhere @ nowhere).dtype == torch.float32


@pytest.mark.parametrize("bad", [(2, 0, 2, 4), (2, 5, 8)])
@pytest.mark.parametrize("name", ["q", "v"])
def test_dplr_says_which_of_q_and_v_is_no_sequence(name: str, bad: tuple[int, ...]) -> None:
    shape = (2, 5, 2, 4)
    given = {one: torch.zeros(bad if one == name else shape) for one in "qkvab"}
    with pytest.raises(ArgumentError, match=rf"^dplr: {name} must be \(batch, length ≥ 1"):
        dplr(**given, log_decay=torch.zeros(shape))


@pytest.mark.parametrize("bad", [(2, 0, 1, 4), (2, 5, 4)])
@pytest.mark.parametrize("name", ["x", "B"])
def test_ssd_says_which_of_x_and_b_is_no_sequence(name: str, bad: tuple[int, ...]) -> None:
    given = {"x": torch.zeros(2, 5, 2, 3), "B": torch.zeros(2, 5, 1, 4), name: torch.zeros(bad)}
    with pytest.raises(ArgumentError, match=rf"^ssd: {name} must be \(batch, length ≥ 1"):
        ssd(given["x"], torch.zeros(2, 5, 2), torch.zeros(2), given["B"], given["B"])


@pytest.mark.parametrize("name", sorted({*OPERATORS} - {"block_linear", "lti_scan", "linear_scan"}))
def test_no_imaginary_part_is_dropped(name: str) -> None:
    """An operator in real arithmetic refuses a complex argument by the operator's name."""
    given = arguments(name)
    for place, tensor in enumerate(given):
        if name == "selective_scan" and place > 1:
            continue  # complex transitions are its own
        changed = [tensor * 1j if i == place else one for i, one in enumerate(given)]
        with pytest.raises(ArgumentError, match=f"^{name}: .* must be real, got torch.complex64"):
            OPERATORS[name](*changed)


@pytest.mark.parametrize("name", ["delta_rule", "dplr", "linear_attention", "mlstm", "ssd"])
def test_options_that_are_no_numbers_are_refused_by_name(name: str) -> None:
    given, run = arguments(name), OPERATORS[name]
    for chunk_size in (2.5, True, "64"):
        with pytest.raises(ArgumentError, match=f"^{name}: chunk_size must be an integer"):
            run(*given, chunk_size=chunk_size)
    with pytest.raises(ArgumentError, match=f"^{name}: chunk_size must be at least 1, got 0"):
        run(*given, chunk_size=0)
    with pytest.raises(ArgumentError, match=f"^{name}: . must be a tensor, got list"):
        run(given[0].tolist(), *given[1:])
    if name not in ("mlstm", "ssd"):
        for scale in (torch.ones((), requires_grad=True), "a", True):
            with pytest.raises(ArgumentError, match=f"^{name}: scale must be a number"):
                run(*given, scale=scale)
        for heads, width in ((0, 4), (2, 0)):
            none = torch.zeros(2, 5, heads, width)
            with pytest.raises(ArgumentError, match=f"^{name}: q must be .* heads ≥ 1, width ≥ 1"):
                run(none, none, none, *(none for _ in given[3:]))
