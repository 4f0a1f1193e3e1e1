"""Laws 10 to 12: the meta device, modules put in the place of submodules, and torch.export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.errors import LongseqError
from longseq.core.mixers import State
from longseq.core.mixers.base import construct
from longseq.core.testing.subject import ContractError, Subject, close, require

_SHORTEST, _LONGEST = 8, 40  # lengths for which a mixer is exported


def check_meta(subject: Subject) -> None:
    """Law 10: on the meta device shapes and dtypes are those of a real call."""
    real = subject.fresh()
    try:
        with torch.device("meta"):
            mixer = construct(subject.cls, subject.d_model, subject.kwargs)
    except (RuntimeError, NotImplementedError) as error:
        raise ContractError(f"law 10, a value is asked for at construction: {error}") from error
    for key, value in real.state_dict().items():
        other = mixer.state_dict()[key]
        same = other.shape == value.shape and other.dtype == value.dtype
        require(same and other.device.type == "meta", f"law 10, {key} is {other.device}")
    x = subject.data(2, 19, dtype=torch.float32)
    ids = torch.zeros(2, 19, dtype=torch.long)
    try:
        for arguments in ({}, {"segment_ids": ids}, {"attention_mask": ids + 1}):
            there = {key: value.to("meta") for key, value in arguments.items()}
            _same_shapes(mixer(x.to("meta"), **there), real(x), "law 10, forward")
        y, state = mixer(x.to("meta"))
        y.sum().backward()
        if mixer.causal:
            expected = real.step(x[:, 0], real(x)[1])
            _same_shapes(mixer.step(x[:, 0].to("meta"), state), expected, "law 10, step")
    except (RuntimeError, NotImplementedError) as error:
        raise ContractError(f"law 10, a value is asked for: {error}") from error


def _same_shapes(actual: tuple[Tensor, State], expected: tuple[Tensor, State], what: str) -> None:
    named = {"output": (actual[0], expected[0])}
    named |= {f"state {key}": (value, expected[1][key]) for key, value in actual[1].items()}
    for key, (one, other) in named.items():
        require(one.device.type == "meta", f"{what}: {key} is on {one.device}")
        require(
            one.shape == other.shape and one.dtype == other.dtype,
            f"{what}: {key} is {one.dtype} {tuple(one.shape)} instead of {other.dtype} "
            f"{tuple(other.shape)}",
        )


class _Adapter(nn.Module):
    """What an adapter looks like from outside: it shows the weights of the layer inside, and adds
    to what that returns."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any) -> Any:
        return 1.5 * self.base(*args)


_LAYERS = (nn.Linear, nn.Conv1d, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def check_adapters(subject: Subject) -> None:
    """Law 11: a module put in the place of a layer is called, or refused by name."""
    mixer, x = subject.make(), subject.data(2, 9)
    ways = [("forward", lambda: mixer(x)[0])]
    if mixer.causal:
        with torch.no_grad():
            _, state = mixer(x)
        ways.append(("step", lambda: mixer.step(x[:, 0], state)[0]))
    with torch.no_grad():
        before = [run() for _, run in ways]
        for name, layer in list(mixer.named_modules()):
            if not (isinstance(layer, _LAYERS) or type(layer).__name__.endswith("Linear")):
                continue
            parent, _, own = name.rpartition(".")
            holder = mixer.get_submodule(parent)
            holder._modules[own] = _Adapter(layer)
            for (way, run), plain in zip(ways, before):
                try:
                    passed_by = torch.equal(run(), plain)
                except LongseqError:
                    continue
                require(not passed_by, f"law 11, {way} passes by what is in the place of {name}")
            holder._modules[own] = layer


def check_export(subject: Subject) -> None:
    """Law 12: a program exported for open lengths computes what the mixer computes; or that is
    refused by name, with the reason that the mixer gives."""
    mixer, example = subject.make(), subject.data(2, 20)
    length = torch.export.Dim("length", min=_SHORTEST, max=_LONGEST)
    with torch.no_grad():
        try:
            exported = torch.export.export(mixer, (example,), dynamic_shapes=({1: length},))
        except Exception as error:
            if _refused(error):
                return
            first = str(error).strip().partition("\n")[0]
            raise ContractError(
                f"law 12, {type(error).__name__}: {first}. Where the length must be known, say why "
                f"in the class attribute closed_length of {subject.cls.__name__}"
            ) from error
        program = exported.module()
        for positions in (_SHORTEST, 21, _LONGEST):
            x = subject.data(2, positions)
            y, state = mixer(x)
            actual, carried = program(x)
            close(actual, y, f"law 12, output, length {positions}")
            for key, value in state.items():
                what = f"law 12, state {key}, length {positions}"
                if value.numel() and (value.is_floating_point() or value.is_complex()):
                    close(carried[key], value, what)
                else:
                    require(torch.equal(carried[key], value), f"{what} differs")


def _refused(error: BaseException | None) -> bool:
    """Returns whether an error, or one that it came of, is ours and names torch.export."""
    while error is not None:
        if isinstance(error, LongseqError) and "torch.export" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
