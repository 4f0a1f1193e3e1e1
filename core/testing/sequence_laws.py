"""Laws 1 to 6: chunks, steps, causality, batch, packs, gradients; and training and size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from longseq.core.mixers import State
from longseq.core.testing.subject import Subject, close, floats, gradients, require, total


def check_chunks(subject: Subject) -> None:
    """Law 1: chunks equal the whole, gradients included."""
    for length in (1, 2, 7, 33):
        mixer = subject.make()
        x = subject.data(2, length).requires_grad_()
        whole, last = mixer(x)
        expected = gradients(total(whole, last), x, mixer)
        for cuts in {(length // 2,), (1, length - 1), (length // 3, length // 2)}:
            edges = sorted({0, length, *cuts})
            x2 = x.detach().clone().requires_grad_()
            state, parts = None, []
            for low, high in pairwise(edges):
                part, state = mixer(x2[:, low:high], state)
                parts.append(part)
            y = torch.cat(parts, 1)
            assert state is not None
            close(y, whole, f"law 1, output, cut at {edges}")
            for key, value in floats(state).items():
                close(value, last[key], f"law 1, state {key}, cut at {edges}")
            for label, gradient in gradients(total(y, state), x2, mixer).items():
                other = expected[label]
                require(
                    (gradient is None) == (other is None),
                    f"law 1, {label} has a gradient in one way only",
                )
                if gradient is not None and other is not None:
                    close(gradient, other, f"law 1, gradient of {label}, cut at {edges}", scale=5)


def check_steps(subject: Subject) -> None:
    """Law 2: stepping equals the whole."""
    mixer, x = subject.make(), subject.data(2, 19)
    with torch.no_grad():
        whole, last = mixer(x)
        state = mixer.init_state(2, dtype=subject.dtype)
        outputs = []
        for t in range(x.shape[1]):
            y_t, state = mixer.step(x[:, t], state)
            outputs.append(y_t)
    close(torch.stack(outputs, 1), whole, "law 2, output")
    for key, value in floats(state).items():
        close(value, last[key], f"law 2, state {key}")


def check_causality(subject: Subject) -> None:
    """Law 3: what comes later changes nothing before."""
    mixer, x = subject.make(), subject.data(2, 29)
    with torch.no_grad():
        before, _ = mixer(x)
        for t in (1, 8, 28):
            changed = x.clone()
            changed[:, t:] = 3 * subject.data(2, 29 - t, seed=5)
            after, _ = mixer(changed)
            close(after[:, :t], before[:, :t], f"law 3, output before {t}")
            seen = not torch.allclose(after[:, t:], before[:, t:])
            require(seen, f"law 3, input from {t} on changes no output")


def check_batch(subject: Subject) -> None:
    """Law 4: a row does not see its neighbours in the batch."""
    mixer, x = subject.make(), subject.data(3, 13)
    with torch.no_grad():
        together, _ = mixer(x)
        changed = x.clone()
        changed[0] = 10 * subject.data(1, 13, seed=9)[0]
        alone = torch.equal(mixer(changed)[0][1:], together[1:])
        require(alone, "law 4, a neighbour's values change a row's output")
        for row in range(3):
            close(mixer(x[row : row + 1])[0][0], together[row], f"law 4, row {row} alone")


def check_packing(subject: Subject) -> None:
    """Law 5: packed sequences equal separate ones, gradients included."""
    mixer = subject.make()
    lengths = [[1, 9, 5], [7, 2, 6]]
    x = subject.data(2, 15).requires_grad_()
    ids = torch.stack(
        [torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths]
    )
    packed, _ = mixer(x, segment_ids=ids)
    rows = [
        [mixer(part.unsqueeze(0))[0][0] for part in x[row].split(lengths[row])] for row in range(2)
    ]
    separate = torch.stack([torch.cat(parts) for parts in rows])
    close(packed, separate, "law 5, output")
    weights = subject.data(2, 15, seed=3)
    actual = gradients((packed * weights).sum(), x, mixer)
    for label, expected in gradients((separate * weights).sum(), x, mixer).items():
        gradient = actual[label]
        if expected is not None:
            require(gradient is not None, f"law 5, no gradient of {label}")
            assert gradient is not None
            close(gradient, expected, f"law 5, gradient of {label}", scale=5)


def check_packing_continues(subject: Subject) -> None:
    """Law 5: position 0 continues the given state; the state after the pack is its last
    segment's."""
    subject = Subject(subject.cls, subject.kwargs, torch.float64, subject.d_model)
    mixer, x = subject.make(), subject.data(1, 12)
    ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        whole, _ = mixer(x[:, :9])
        tail, last = mixer(x[:, 9:])
        _, state = mixer(x[:, :5])
        y, after = mixer(torch.cat([x[:, 5:9], x[:, 9:]], 1), state, ids)
        close(y[:, :4], whole[:, 5:], "law 5, first segment, continued")
        close(y[:, 4:], tail, "law 5, second segment, reset")
        again = subject.data(1, 3, seed=4)
        close(mixer(again, after)[0], mixer(again, last)[0], "law 5, what follows the pack")


def check_gradients(subject: Subject) -> None:
    """Law 6: the gradient reaches the initial state; the final state is differentiable. Of a mixer
    whose state is empty there is nothing to ask."""
    subject = Subject(subject.cls, subject.kwargs, torch.float64, subject.d_model)
    mixer = subject.make()
    with torch.no_grad():
        _, state = mixer(subject.data(2, 5, seed=2))
    if not state:  # every position by itself, which laws 1 and 2 have shown
        return
    leaves = {k: v.detach().clone().requires_grad_() for k, v in floats(state).items()}
    require(bool(leaves), "law 6, a causal mixer carries a state of floating-point numbers")
    x = subject.data(2, 6).requires_grad_()

    def run(values: State) -> Tensor:
        return total(*mixer(x, {**state, **values}))

    found = torch.autograd.grad(run(leaves), list(leaves.values()), allow_unused=True)
    reached = any(g is not None and bool(g.abs().max() > 0) for g in found)
    require(reached, "law 6, no gradient reaches the initial state")
    step = 1e-6
    for (key, leaf), gradient in zip(leaves.items(), found):
        direction = torch.randn_like(leaf)
        with torch.no_grad():
            up, down = (run({**leaves, key: leaf + sign * step * direction}) for sign in (1, -1))
        numeric = ((up - down) / (2 * step)).item()
        product = 0.0 if gradient is None else (gradient.conj() * direction).sum().real.item()
        near = abs(numeric - product) <= 1e-6 * max(1.0, abs(numeric))
        require(near, f"law 6, state {key}: gradient {product}, by differences {numeric}")
    _, last = mixer(x, state)
    ends = torch.stack([v.abs().tanh().sum() for v in floats(last).values()]).sum()
    (through,) = torch.autograd.grad(ends, [x])
    require(bool(through.abs().max() > 0), "law 6, the final state is not differentiable")


def check_training(subject: Subject) -> None:
    """200 optimiser steps under bfloat16 autocast stay finite; recurrent states are at least
    float32."""
    mixer = subject.fresh()
    optimiser = torch.optim.AdamW(mixer.parameters(), lr=3e-3)
    state: State = {}
    for step in range(200):
        x = subject.data(2, 9 + step % 4, step, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = mixer(x)
            loss = (y.float() - x.roll(1, 1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        require(
            bool(torch.isfinite(loss)), f"bfloat16 training, step {step}: the loss is not finite"
        )
    require(
        all(bool(torch.isfinite(p).all()) for p in mixer.parameters()),
        "bfloat16 training: parameters",
    )
    if mixer.finite_state:  # histories are activations; recurrent states are never below float32
        for key in mixer.init_state(1, dtype=torch.bfloat16):
            if "conv" not in key and key in floats(state):
                low = state[key].dtype in (torch.bfloat16, torch.float16)
                require(not low, f"bfloat16 training: state {key} is {state[key].dtype}")


def check_state_size(subject: Subject) -> None:
    """``state_size`` counts what a row carries."""
    mixer = subject.make(torch.float32)
    for length in (1, 5, 50):
        _, state = mixer(subject.data(1, length, dtype=torch.float32))
        carried = sum(v[0].numel() for v in floats(state).values())
        said = mixer.state_size(length)
        require(
            carried <= said, f"state_size({length}) is {said}, but {carried} values are carried"
        )
    if mixer.finite_state:
        require(mixer.state_size(5) == mixer.state_size(50), "a finite state has one size")
