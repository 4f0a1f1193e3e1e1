"""A mixer under test, and how its results are compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.mixers import Mixer, State
from longseq.core.mixers.base import construct, mixer_class

# Relative to the largest value. A few hundred roundings of 6e-8 (float32) or 1e-16 (float64) each.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


class ContractError(AssertionError):
    """A mixer breaks a law of the contract."""


WORDS = {
    1: "forward in parts, with the state handed on, is forward of the whole",
    2: "steps are forward",
    3: "what comes later changes nothing before",
    4: "a row does not depend on its neighbours in the batch",
    5: "packed sequences are the sequences one by one",
    6: "the gradient reaches the initial state, and the final state is differentiable",
    7: "what is not finite reaches nothing before it and no other sequence",
    8: "padding changes nothing",
    9: "nothing in, nothing out, and zero gradients",
    10: "the meta device infers shapes",
    11: "what was put in a submodule's place is called, or refused by name",
    12: "torch.export takes a length that is left open, or it is refused by name",
}
"""The laws of the contract in words."""


def require(condition: bool, message: str) -> None:
    """Checks a condition.

    Raises:
        ContractError: if it does not hold, with the message and, if that names a law, its words.
    """
    if not condition:
        number = re.match(r"law (\d+)", message)
        words = f" ({WORDS[int(number[1])]})" if number else ""
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
        if not (isinstance(self.cls, type) and issubclass(self.cls, Mixer)):
            raise ConfigError(f"{getattr(self.cls, '__name__', self.cls)} is no Mixer")
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
    require(
        actual.shape == expected.shape,
        f"{what}: {tuple(actual.shape)} instead of {tuple(expected.shape)}",
    )
    plain = torch.view_as_real(expected) if expected.is_complex() else expected
    require(bool(torch.isfinite(plain).all()), f"{what}: not finite")
    real = torch.float64 if expected.dtype in (torch.float64, torch.complex128) else torch.float32
    bound = scale * TOLERANCE[real] * max(expected.abs().max().item(), 1e-3)
    error = (actual - expected).abs().max().item()
    require(error <= bound, f"{what}: {error:.2e} > {bound:.2e}")


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


def gradients(loss: Tensor, x: Tensor, mixer: Mixer) -> dict[str, Tensor | None]:
    """Returns the gradients of x and of all parameters, by name."""
    named = dict(mixer.named_parameters())
    found = torch.autograd.grad(loss, [x, *named.values()], allow_unused=True)
    return dict(zip(["x", *named], found))
