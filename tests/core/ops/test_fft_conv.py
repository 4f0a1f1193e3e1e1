"""fft_conv against the direct sum: values, gradients, history, packing, frames, channel blocks,
sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.ops.fft_conv import (
    carry_history,
    composed,
    cpu,
    fft_conv,
    fft_conv_reference,
    fft_size,
)

# Relative to the largest value: FFT roundings grow with log n only.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# (length, taps, history): one position, odd lengths, kernels shorter and longer than everything,
# frames
SHAPES = [
    (1, 1, 0),
    (1, 9, 5),
    (1, 3, 8),
    (7, 7, 0),
    (13, 40, 0),
    (13, 40, 21),
    (33, 5, 60),
    (97, 4, 3),
    (300, 7, 0),
]


def make(
    length: int, taps: int, before: int, dtype: torch.dtype, width: int = 3
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(length + 7 * taps + before)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    values = {"u": draw(2, length, width), "k": draw(width, taps), "skip": draw(width)}
    return {**values, "history": draw(2, before, width)} if before else values


def close(actual: Tensor, expected: Tensor, what: str, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape and actual.dtype == expected.dtype, what
    bound = TOLERANCE[dtype] * max(expected.abs().max().item(), 1.0)
    error = (actual - expected).abs().max().item()
    assert error <= bound, f"{what}: {error:.1e} > {bound:.1e}"


def compare(values: dict[str, Tensor], ids: Tensor | None, dtype: torch.dtype) -> None:
    """Values and all gradients."""
    actual, expected = (f(**values, segment_ids=ids) for f in (fft_conv, fft_conv_reference))
    close(actual, expected, "output", dtype)
    weights = torch.linspace(0, 9, actual.numel(), dtype=dtype).sin().view_as(actual)
    found, wanted = (
        torch.autograd.grad((y * weights).sum(), list(values.values())) for y in (actual, expected)
    )
    for name, a, e in zip(values, found, wanted):
        close(a, e, f"gradient of {name}", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("length", "taps", "before"), SHAPES)
def test_equals_direct_sum(length: int, taps: int, before: int, dtype: torch.dtype) -> None:
    compare(make(length, taps, before, dtype), None, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("taps", "before"), [(4, 0), (30, 0), (30, 11), (5, 40)])
def test_packed_segments(taps: int, before: int, dtype: torch.dtype) -> None:
    """An id that comes back after another one is a new segment."""
    lengths = [[1, 24, 5, 10], [40, 0, 0, 0]]
    ids = torch.stack(
        [torch.repeat_interleave(torch.tensor([3, 1, 3, 0]), torch.tensor(row)) for row in lengths]
    )
    compare(make(40, taps, before, dtype), ids, dtype)


@pytest.mark.parametrize("blocks", [1, 1 << 26])
@pytest.mark.parametrize(("length", "taps", "before"), [(13, 40, 21), (150, 6, 9), (33, 5, 0)])
def test_without_compiled_kernels_and_by_channel_blocks(
    length: int, taps: int, before: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_reason", lambda *_: "absent")
    monkeypatch.setattr(composed, "_BLOCK_VALUES", blocks)
    compare(make(length, taps, before, torch.float64), None, torch.float64)


def test_gradients_of_the_gradients() -> None:
    values = make(9, 5, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *v: fft_conv(*v), tuple(values.values()))
    assert torch.autograd.gradgradcheck(lambda *v: fft_conv(*v), tuple(values.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 16, 21, 40])
@pytest.mark.parametrize("by_tap", [False, True])
def test_any_number_of_channels_and_either_layout_of_the_kernel(
    width: int, by_tap: bool, dtype: torch.dtype
) -> None:
    values = make(70, 45, 6, dtype, width)
    if by_tap:
        values["k"] = values["k"].detach().T.contiguous().T.requires_grad_()
    compare(values, None, dtype)


@pytest.mark.parametrize("length", [1200, 2000, 4000, 5000])
def test_transforms_of_every_radix_in_float32(length: int) -> None:
    """Lengths whose transforms have factors 2, 3, 5 and 9, and more points than one block of the
    cache."""
    values = {key: t.detach() for key, t in make(length, length, 0, torch.float64, 2).items()}
    exact = torch.fft.irfft(
        torch.fft.rfft(values["u"].transpose(1, 2), n=2 * length)
        * torch.fft.rfft(values["k"], n=2 * length)
    )[..., :length].transpose(1, 2)
    y = fft_conv(values["u"].float(), values["k"].float())
    assert (y - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_under_transforms_and_compilation() -> None:
    values = make(30, 12, 4, torch.float64)
    u, k, skip, history = values.values()
    rows = torch.stack([u, 2 * u, u.flip(1)])

    def one(u: Tensor, k: Tensor) -> Tensor:
        return fft_conv(u, k, skip, history)

    expected = torch.stack([one(row, k) for row in rows])
    torch.testing.assert_close(torch.func.vmap(one, (0, None))(rows, k), expected)
    kernels = torch.stack([k, k.flip(1), -k])
    loop = torch.stack([one(u, k) for k in kernels])
    torch.testing.assert_close(torch.func.vmap(one, (None, 0))(u, kernels), loop)
    found = torch.func.vmap(torch.func.grad(lambda u, k: one(u, k).square().sum(), 1), (0, None))(
        rows, k
    )
    wanted = torch.stack([torch.autograd.grad(one(row, k).square().sum(), k)[0] for row in rows])
    torch.testing.assert_close(found, wanted)
    compiled = torch.compile(fft_conv, fullgraph=True, backend="aot_eager")
    y = compiled(u, k, skip, history)
    torch.testing.assert_close(y, one(u, k))
    torch.testing.assert_close(
        torch.autograd.grad(y.sin().sum(), (u, k, skip, history)),
        torch.autograd.grad(one(u, k).sin().sum(), (u, k, skip, history)),
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 30), st.booleans())
def test_chunks_equal_whole(lengths: list[int], taps: int, packed: bool) -> None:
    """Carrying at most taps - 1 inputs, any cuts give the whole; a segment may span them."""
    total = sum(lengths)
    g = torch.Generator().manual_seed(total)
    u, k = (torch.randn(*s, 2, generator=g, dtype=torch.float64) for s in ((2, total), (taps,)))
    ids = (torch.rand(2, total, generator=g) < 0.15).cumsum(1) if packed else None
    history, parts, lo = None, [], 0
    for length in lengths:
        # the id at the cut decides whether the segment goes on, so each chunk shares a position
        # with the last
        here = None if ids is None else ids[:, lo : lo + length]
        if ids is not None and lo > 0 and history is not None:
            new = (ids[:, lo] != ids[:, lo - 1])[:, None, None]
            history = torch.where(new, 0.0, history)
        parts.append(fft_conv(u[:, lo : lo + length], k.T, history=history, segment_ids=here))
        history = carry_history(u[:, lo : lo + length], history, taps - 1, here)
        assert history.shape[1] <= taps - 1
        lo += length
    expected = fft_conv_reference(u, k.T, segment_ids=ids)
    close(torch.cat(parts, 1), expected, "chunks", torch.float64)


def test_low_precision_activations_are_convolved_in_float32() -> None:
    values = make(200, 150, 0, torch.float64)
    y = fft_conv(values["u"].bfloat16(), values["k"].float())
    exact = fft_conv_reference(values["u"].bfloat16().double(), values["k"].float().double())
    assert y.dtype == torch.bfloat16
    assert (
        (y.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-4
    ).all()  # one rounding at the end


def test_causality_is_exact_between_chunks_and_to_rounding_inside() -> None:
    values = make(64, 64, 0, torch.float64)
    u = values["u"].detach().clone()
    before = fft_conv(u, values["k"])
    u[:, 40:] = 100.0
    close(fft_conv(u, values["k"])[:, :40] / 100, before[:, :40] / 100, "past", torch.float64)


def test_sizes_are_the_smallest_even_products_of_2_3_5() -> None:
    def smooth(n: int) -> bool:
        for p in (2, 3, 5):
            while n % p == 0:
                n //= p
        return n == 1

    for n in [*range(1, 700), 1000003, 2**20 + 1]:
        size = fft_size(n)
        assert size >= n and size % 2 == 0 and smooth(size)
        assert not any(m % 2 == 0 and smooth(m) for m in range(n, size))


def test_history_of_a_pack_is_its_last_segments() -> None:
    u = torch.arange(1.0, 11).view(1, 10, 1).repeat(2, 1, 1)
    ids = torch.tensor([[0] * 7 + [1] * 3, [0] * 4 + [2] * 6])
    kept = carry_history(u, torch.full((2, 2, 1), -1.0), 8, ids)
    assert kept[..., 0].tolist() == [[0, 0, 0, 8, 9, 10], [5, 6, 7, 8, 9, 10]]
    assert carry_history(u, None, 3)[0, :, 0].tolist() == [8, 9, 10]
    assert carry_history(u[:, :1], None, 3, fixed=True)[0, :, 0].tolist() == [0, 0, 1]
    assert carry_history(u, None, 0).shape == (2, 0, 1)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"u": torch.zeros(2, 0, 3)}, "u must be"),
        ({"k": torch.zeros(4, 5)}, "k must be"),
        ({"skip": torch.zeros(4)}, "skip must be"),
        ({"history": torch.zeros(1, 5, 3)}, "history must be"),
        ({"segment_ids": torch.zeros(2, 6)}, "segment_ids must be"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, Tensor], match: str) -> None:
    values = {"u": torch.zeros(2, 7, 3), "k": torch.zeros(3, 5), **changed}
    with pytest.raises(ValueError, match=match):
        fft_conv(**values)
