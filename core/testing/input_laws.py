"""Laws 7 to 9: values that are not finite, padding, and no input at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.mixers import Mixer, State
from longseq.core.testing.subject import Subject, close, floats, gradients, require, total

_NOT_FINITE = (math.nan, math.inf, -math.inf)


def check_finite(subject: Subject) -> None:
    """Law 7: a value that is not finite reaches nothing before it and no other sequence."""
    mixer, x, at, cut = subject.make(), subject.data(2, 27), 9, 14
    ids = torch.zeros(2, 27, dtype=torch.long)
    ids[:, cut:] = 1
    with torch.no_grad():
        packed, _ = mixer(x, segment_ids=ids)
        whole, _ = mixer(x)
        for value in _NOT_FINITE:
            spoilt = x.clone()
            spoilt[0, at, 3] = value
            y, state = mixer(spoilt, segment_ids=ids)
            close(y[:, cut:], packed[:, cut:], f"law 7, {value}, the sequence behind")
            close(y[1], packed[1], f"law 7, {value}, the other row of a pack")
            require(not _all_finite(y[0, at]), f"law 7, {value} at {at} is lost in silence")
            alone, state = mixer(spoilt)
            close(alone[1], whole[1], f"law 7, {value}, the other row")
            if not mixer.causal:
                continue
            close(y[0, :at], packed[0, :at], f"law 7, {value} at {at} of a pack, output before")
            close(alone[0, :at], whole[0, :at], f"law 7, {value} at {at}, output before")
            behind, _ = mixer(x, state, ids)
            close(behind[:, cut:], packed[:, cut:], f"law 7, {value} in the state, after a reset")
            close(behind[1], mixer(x, _row(state, 1), ids)[0][1], f"law 7, {value}, other row")
            lost = bool(state) and _all_finite(behind[0, 0])  # an empty state has nothing to lose
            require(not lost, f"law 7, {value} in the state is lost")


def _all_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _row(state: State, row: int) -> State:
    """Returns the state with every row that of one of them."""
    return {k: v[row : row + 1].expand(v.shape).contiguous() for k, v in state.items()}


def check_padding(subject: Subject) -> None:
    """Law 8: padding changes neither outputs nor gradients nor the state, wherever it lies."""
    mixer, length = subject.make(), 11
    counts = torch.tensor([11, 5, 0, 1, 5])
    place = torch.arange(length)
    scattered = torch.stack(
        [torch.randperm(length, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    )
    masks = {
        "right": place < counts.unsqueeze(1),
        "left": place >= length - counts.unsqueeze(1),
        "scattered": scattered < counts.unsqueeze(1),
    }
    for side, real in masks.items():
        x = subject.data(5, length)
        x[~real] = math.nan  # whatever lies there
        x.requires_grad_()
        y, state = mixer(x, attention_mask=real.long())
        require(not bool(y[~real].any()), f"law 8, {side}, outputs at padding are zero")
        rows = [x[row, real[row]].unsqueeze(0) for row in range(5)]
        alone = [mixer(row) for row in rows]
        for row, (expected, _) in enumerate(alone):
            if expected.numel():
                close(y[row, real[row]], expected[0], f"law 8, {side}, row {row}")
        if mixer.causal:
            _check_state(subject, mixer, state, [last for _, last in alone], f"law 8, {side}")
            again, after = mixer(x, state, attention_mask=real)
            ends = []
            for row, part in enumerate(rows):
                expected, last = mixer(part, alone[row][1])
                if expected.numel():
                    what = f"law 8, {side}, from a state, row {row}"
                    close(again[row, real[row]], expected[0], what)
                ends.append(last)
            _check_state(subject, mixer, after, ends, f"law 8, {side}, from a state")
        found = gradients(total(y, {}), x, mixer)
        weights = torch.randn(
            y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7)
        )  # those of ``total``
        parts = [(one[0][0] * weights[row, real[row]]).sum() for row, one in enumerate(alone)]
        for label, expected_gradient in gradients(torch.stack(parts).sum(), x, mixer).items():
            gradient = found[label]
            if expected_gradient is None or not bool(expected_gradient.any()):
                continue
            require(gradient is not None, f"law 8, {side}, no gradient of {label}")
            if gradient is not None:
                close(gradient, expected_gradient, f"law 8, {side}, gradient of {label}", scale=5)
    x = subject.data(5, length)
    by_lengths, _ = mixer(x, lengths=counts)
    by_mask, _ = mixer(x, attention_mask=masks["right"])
    require(torch.equal(by_lengths, by_mask), "law 8, lengths are a mask of the first positions")


def _check_state(
    subject: Subject, mixer: Mixer, state: State, alone: list[State], what: str
) -> None:
    """Checks what follows a state against what follows that of every row alone."""
    more = subject.data(len(alone), 3, seed=6)
    following, _ = mixer(more, state)
    for row, last in enumerate(alone):
        expected, _ = mixer(more[row : row + 1], last)
        close(following[row], expected[0], f"{what}, what follows row {row}")


def check_empty(subject: Subject) -> None:
    """Law 9: no rows or no positions give an empty output, zero gradients, and the state as it
    was."""
    mixer = subject.make()
    for batch, length in ((0, 5), (2, 0), (0, 0)):
        what = f"law 9, batch {batch}, length {length}"
        x = subject.data(batch, length).requires_grad_()
        y, state = mixer(x)
        require(y.shape == x.shape, f"{what}: output {tuple(y.shape)}")
        for label, gradient in gradients(y.sum(), x, mixer).items():
            require(gradient is not None, f"{what}: no gradient of {label}")
            zero = gradient is None or not bool((gradient != 0).any())  # NaN is not 0 either
            require(zero, f"{what}: the gradient of {label} is not zero")
        if not mixer.causal:
            continue
        if length == 0 and batch:
            _, before = mixer(subject.data(batch, 4))
            _, after = mixer(x, before)
            same = before.keys() == after.keys()
            same = same and all(torch.equal(before[key], after[key]) for key in before)
            require(same, f"{what}: the state changes")
        for key, value in floats(state).items():
            require(value.shape[0] == batch, f"{what}: state {key} {tuple(value.shape)}")
        if batch == 0:
            y_t, _ = mixer.step(subject.data(0, 1)[:, 0], mixer.init_state(0, dtype=subject.dtype))
            require(y_t.shape == (0, subject.d_model), f"{what}: step {tuple(y_t.shape)}")
