"""The mixer contract as checks that anybody's mixer can be put to: ``check_mixer(MyMixer,
d_state=4)``.

Every check makes the mixer small and moves its parameters away from their initial values, so that
no term is absent by its initialisation. A broken law raises ``ContractError`` with the law, the
place and the distance.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from longseq.core.mixers import Mixer
from longseq.core.testing import input_laws, module_laws, sequence_laws
from longseq.core.testing.subject import ContractError, Subject, close

__all__ = [
    "CAUSAL_LAWS",
    "FIRST_LAWS",
    "FURTHER_LAWS",
    "ONCE",
    "ContractError",
    "Subject",
    "check_mixer",
    "checks_of",
    "close",
]

Check = Callable[[Subject], None]
CAUSAL_LAWS: dict[str, Check] = {
    "chunks": sequence_laws.check_chunks,
    "steps": sequence_laws.check_steps,
    "causality": sequence_laws.check_causality,
    "packing": sequence_laws.check_packing,
    "packing_continues": sequence_laws.check_packing_continues,
    "gradients": sequence_laws.check_gradients,
}
FIRST_LAWS: dict[str, Check] = {
    "batch": sequence_laws.check_batch,
    "training": sequence_laws.check_training,
    "state_size": sequence_laws.check_state_size,
}
FURTHER_LAWS: dict[str, Check] = {
    "finite": input_laws.check_finite,
    "padding": input_laws.check_padding,
    "empty": input_laws.check_empty,
    "meta": module_laws.check_meta,
    "adapters": module_laws.check_adapters,
    "export": module_laws.check_export,
}
ONCE = (
    "packing_continues",
    "gradients",
    "training",
    "state_size",
    "empty",
    "meta",
    "adapters",
    "export",
)
"""Checks whose dtype is their own."""


def checks_of(mixer: Mixer) -> dict[str, Check]:
    """Returns the checks that a mixer must pass: of a non-causal one, those that need no state."""
    return {**FIRST_LAWS, **(CAUSAL_LAWS if mixer.causal else {}), **FURTHER_LAWS}


def _check_form(subject: Subject) -> None:
    """Checks that the mixer returns what a mixer returns, before any law is asked."""
    x = subject.data(2, 5)
    name = subject.cls.__name__
    try:
        inspect.signature(subject.cls.forward).bind(None, x, None, None)
    except TypeError as error:
        raise ContractError(f"{name}.forward must take (x, state, segment_ids): {error}") from error
    mixer, given = subject.make(), x.clone()
    found = mixer(x)
    if not (isinstance(found, tuple) and len(found) == 2):
        what = type(found).__name__
        what = f"a tuple of {len(found)}" if isinstance(found, tuple) else what
        raise ContractError(f"{name}.forward must return (y, state), and returned {what}")
    if not isinstance(found[1], dict):
        what = type(found[1]).__name__
        raise ContractError(f"{name}.forward must return its state as a dict, and returned {what}")
    for key, value in found[1].items():
        if not (isinstance(value, torch.Tensor) and value.shape[:1] == x.shape[:1]):
            what = type(value).__name__
            what = f"one of shape {tuple(value.shape)}" if hasattr(value, "shape") else what
            raise ContractError(
                f"{name}: the state {key!r} must be a tensor, batch first, and is {what}"
            )
    if found[0].shape != x.shape:
        raise ContractError(
            f"{name}.forward must return y of the shape of x, {tuple(x.shape)}, and returned "
            f"{tuple(found[0].shape)}"
        )
    if not torch.equal(x, given):
        raise ContractError(f"{name}.forward changes its input in place")
    kept = {key: value.clone() for key, value in found[1].items()}
    with torch.no_grad():
        x.zero_()
        for key, value in found[1].items():
            if not torch.equal(value, kept[key]):
                raise ContractError(
                    f"{name}.forward keeps its input's memory in the state {key!r}, which changes "
                    "when the caller writes the next chunk there: copy it"
                )
        x.copy_(given)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        again = mixer(x)[0]
    if not torch.equal(found[0], again):
        raise ContractError(
            f"{name}.forward gives another output for the same input: it is random in evaluation "
            "mode, or keeps something from call to call outside of its state"
        )


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
        ConfigError: for hyper-parameters that the mixer does not take, or a class that is no mixer.
    """
    _check_form(Subject(mixer, kwargs, torch.float32, d_model))
    for number, dtype in enumerate(dtypes):
        subject = Subject(mixer, kwargs, dtype, d_model)
        for name, check in checks_of(subject.fresh()).items():
            if number == 0 or name not in ONCE:
                check(subject)
