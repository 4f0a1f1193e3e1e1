"""The mixer contract as checks that anybody's mixer can be put to: ``check_mixer(MyMixer,
d_state=4)``.

Every check makes the mixer small and moves its parameters away from their initial values, so that
no term is absent by its initialisation. A broken law raises ``ContractError`` with the law, the
place and the distance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from longseq.core.mixers import Mixer, State
from longseq.core.mixers.base import construct, mixer_class

# Relative to the largest value. A few hundred roundings of 6e-8 (float32) or 1e-16 (float64) each.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


class ContractError(AssertionError):
    """A mixer breaks a law of the contract."""


_WORDS = {
    1: "forward in parts, with the state handed on, is forward of the whole",
    2: "steps are forward",
    3: "what comes later changes nothing before",
    4: "a row does not depend on its neighbours in the batch",
    5: "packed sequences are the sequences one by one",
    6: "the gradient reaches the initial state, and the final state is differentiable",
}
"""The laws of the contract in words."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        number = re.match(r"law (\d)", message)
        words = f" ({_WORDS[int(number[1])]})" if number else ""
        raise ContractError(f"{message}{words}")


class Subject:
    """A mixer under test: makes it, and inputs for it, the same at every call.

    Args:
        mixer: a class, or the name of a registered one.
        kwargs: its hyper-parameters.
        dtype: float32 or float64.
        d_model: width D.
    """

    def __init__(
        self,
        mixer: str | type[Mixer],
        kwargs: Mapping[str, Any],
        dtype: torch.dtype = torch.float64,
        d_model: int = 16,
    ) -> None:
        self.cls = mixer_class(mixer) if isinstance(mixer, str) else mixer
        self.kwargs, self.dtype, self.d_model = dict(kwargs), dtype, d_model

    def fresh(self) -> Mixer:
        """Returns the mixer as its constructor leaves it, in float32."""
        torch.manual_seed(0)
        return construct(self.cls, self.d_model, self.kwargs)

    def make(self, dtype: torch.dtype | None = None) -> Mixer:
        """Returns the mixer in evaluation mode, its parameters moved.

        Args:
            dtype: in place of the subject's.
        """
        mixer = self.fresh().to(dtype or self.dtype).eval()
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return mixer

    def data(
        self, batch: int, length: int, seed: int = 1, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Returns normal random input (B, L, D).

        Args:
            batch: B.
            length: L.
            seed: of the numbers.
            dtype: in place of the subject's.
        """
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, length, self.d_model, dtype=torch.float64, generator=generator)
        return x.to(dtype or self.dtype)


def close(actual: Tensor, expected: Tensor, what: str, scale: float = 1.0) -> None:
    """Checks that two tensors agree to rounding.

    Args:
        actual: by the way that is checked.
        expected: by the plain way; finite.
        what: for the message.
        scale: on the tolerance, which is relative to the largest value.

    Raises:
        ContractError: if they do not.
    """
    _require(
        actual.shape == expected.shape,
        f"{what}: {tuple(actual.shape)} instead of {tuple(expected.shape)}",
    )
    plain = torch.view_as_real(expected) if expected.is_complex() else expected
    _require(bool(torch.isfinite(plain).all()), f"{what}: not finite")
    real = torch.float64 if expected.dtype in (torch.float64, torch.complex128) else torch.float32
    bound = scale * TOLERANCE[real] * max(expected.abs().max().item(), 1e-3)
    error = (actual - expected).abs().max().item()
    _require(error <= bound, f"{what}: {error:.2e} > {bound:.2e}")


def floats(state: State) -> State:
    """Returns the entries of a state that carry values: not integers, not empty."""
    return {
        k: v for k, v in state.items() if (v.is_floating_point() or v.is_complex()) and v.numel()
    }


def total(y: Tensor, state: State) -> Tensor:
    """Returns a scalar that depends on every output and on the final state."""
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))
    loss = (y * weights).sum()
    for value in floats(state).values():
        real = torch.view_as_real(value) if value.is_complex() else value
        # tanh: a running maximum may be -inf at the start, and one large entry must not hide the
        # others.
        loss = loss + 0.1 * torch.tanh(real).sum().to(y.dtype)
    return loss


def _gradients(loss: Tensor, x: Tensor, mixer: Mixer) -> dict[str, Tensor | None]:
    named = dict(mixer.named_parameters())
    found = torch.autograd.grad(loss, [x, *named.values()], allow_unused=True)
    return dict(zip(["x", *named], found))


def check_chunks(subject: Subject) -> None:
    """Law 1: chunks equal the whole, gradients included."""
    for length in (1, 2, 7, 33):
        mixer = subject.make()
        x = subject.data(2, length).requires_grad_()
        whole, last = mixer(x)
        expected = _gradients(total(whole, last), x, mixer)
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
            for label, gradient in _gradients(total(y, state), x2, mixer).items():
                other = expected[label]
                _require(
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
            _require(seen, f"law 3, input from {t} on changes no output")


def check_batch(subject: Subject) -> None:
    """Law 4: a row does not see its neighbours in the batch."""
    mixer, x = subject.make(), subject.data(3, 13)
    with torch.no_grad():
        together, _ = mixer(x)
        changed = x.clone()
        changed[0] = 10 * subject.data(1, 13, seed=9)[0]
        alone = torch.equal(mixer(changed)[0][1:], together[1:])
        _require(alone, "law 4, a neighbour's values change a row's output")
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
    actual = _gradients((packed * weights).sum(), x, mixer)
    for label, expected in _gradients((separate * weights).sum(), x, mixer).items():
        gradient = actual[label]
        if expected is not None:
            _require(gradient is not None, f"law 5, no gradient of {label}")
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
    """Law 6: the gradient reaches the initial state; the final state is differentiable."""
    subject = Subject(subject.cls, subject.kwargs, torch.float64, subject.d_model)
    mixer = subject.make()
    with torch.no_grad():
        _, state = mixer(subject.data(2, 5, seed=2))
    leaves = {k: v.detach().clone().requires_grad_() for k, v in floats(state).items()}
    _require(bool(leaves), "law 6, a causal mixer carries a state of floating-point numbers")
    x = subject.data(2, 6).requires_grad_()

    def run(values: State) -> Tensor:
        return total(*mixer(x, {**state, **values}))

    gradients = torch.autograd.grad(run(leaves), list(leaves.values()), allow_unused=True)
    reached = any(g is not None and bool(g.abs().max() > 0) for g in gradients)
    _require(reached, "law 6, no gradient reaches the initial state")
    step = 1e-6
    for (key, leaf), gradient in zip(leaves.items(), gradients):
        direction = torch.randn_like(leaf)
        with torch.no_grad():
            up, down = (run({**leaves, key: leaf + sign * step * direction}) for sign in (1, -1))
        numeric = ((up - down) / (2 * step)).item()
        product = 0.0 if gradient is None else (gradient.conj() * direction).sum().real.item()
        near = abs(numeric - product) <= 1e-6 * max(1.0, abs(numeric))
        _require(near, f"law 6, state {key}: gradient {product}, by differences {numeric}")
    _, last = mixer(x, state)
    ends = torch.stack([v.abs().tanh().sum() for v in floats(last).values()]).sum()
    (through,) = torch.autograd.grad(ends, [x])
    _require(bool(through.abs().max() > 0), "law 6, the final state is not differentiable")


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
        _require(
            bool(torch.isfinite(loss)), f"bfloat16 training, step {step}: the loss is not finite"
        )
    _require(
        all(bool(torch.isfinite(p).all()) for p in mixer.parameters()),
        "bfloat16 training: parameters",
    )
    if mixer.finite_state:  # histories are activations; recurrent states are never below float32
        for key in mixer.init_state(1, dtype=torch.bfloat16):
            if "conv" not in key and key in floats(state):
                low = state[key].dtype in (torch.bfloat16, torch.float16)
                _require(not low, f"bfloat16 training: state {key} is {state[key].dtype}")


def check_state_size(subject: Subject) -> None:
    """``state_size`` counts what a row carries."""
    mixer = subject.make(torch.float32)
    for length in (1, 5, 50):
        _, state = mixer(subject.data(1, length, dtype=torch.float32))
        carried = sum(v[0].numel() for v in floats(state).values())
        said = mixer.state_size(length)
        _require(
            carried <= said, f"state_size({length}) is {said}, but {carried} values are carried"
        )
    if mixer.finite_state:
        _require(mixer.state_size(5) == mixer.state_size(50), "a finite state has one size")


Check = Callable[[Subject], None]
CAUSAL_LAWS: dict[str, Check] = {
    "chunks": check_chunks,
    "steps": check_steps,
    "causality": check_causality,
    "packing": check_packing,
    "packing_continues": check_packing_continues,
    "gradients": check_gradients,
}
LAWS: dict[str, Check] = {
    "batch": check_batch,
    "training": check_training,
    "state_size": check_state_size,
}
ONCE = ("packing_continues", "gradients", "training", "state_size")
"""Checks whose dtype is their own."""


def checks_of(mixer: Mixer) -> dict[str, Check]:
    """Returns the checks that a mixer must pass: of a non-causal one, those that need no state."""
    return {**LAWS, **CAUSAL_LAWS} if mixer.causal else LAWS


def check_mixer(
    mixer: str | type[Mixer],
    d_model: int = 16,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.float64),
    **kwargs: Any,
) -> None:
    """Puts a mixer to all laws of the contract; some seconds.

    Args:
        mixer: a class derived from ``Mixer``, or the name of a registered one.
        d_model: width D.
        dtypes: in which the laws are checked.
        **kwargs: the mixer's hyper-parameters; small ones keep it quick.

    Raises:
        ContractError: naming the first law that is broken, where, and by how much.
        ConfigError: for hyper-parameters that the mixer does not take.
    """
    for number, dtype in enumerate(dtypes):
        subject = Subject(mixer, kwargs, dtype, d_model)
        for name, check in checks_of(subject.fresh()).items():
            if number == 0 or name not in ONCE:
                check(subject)
