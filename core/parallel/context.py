"""Context parallelism: the positions of a sequence over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import Mixer, State
from longseq.core.mixers.bidirectional import Bidirectional
from longseq.core.mixers.guard import MixerCarry
from longseq.core.parallel.link import Link, Receive, Send


class ContextParallel:
    """Runs a model's mixers on one sequence whose positions lie on several ranks, in order.

    A rank gives each mixer the state that the rank before has reached in the same layer, and passes
    its own on: the contract's chunks (law 1), computed by several processes. Results and gradients
    are those of one process, for every causal mixer, of this package or not, linear or not. While
    one rank is in layer l, the next is in layer l - 1: R ranks and N layers need N + R - 1 turns
    where N would be ideal, so a share N / (N + R - 1) of the machine works. The states and their
    gradients are all that is sent; ``sent_bytes`` counts them.

    A bidirectional mixer's second half passes its states the other way, so its ranks wait for each
    other in every layer: right, and no faster than one.

    Args:
        group: process group of ``torch.distributed``; its ranks hold consecutive parts. None for
            all ranks.
        recompute: whether the backward pass computes what is inside the mixers again, from their
            inputs and the states that came, in place of keeping it. Checkpoints of torch around
            whole layers cannot be used here: they would ask for the states again.

    Raises:
        ConfigError: if ``torch.distributed`` is not initialised.
    """

    def __init__(self, group: Any = None, recompute: bool = False) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ConfigError(
                "context parallelism needs torch.distributed: start with torchrun and call "
                "torch.distributed.init_process_group first"
            )
        self.group, self.recompute = group, recompute
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._ahead, self._back = Link(group), Link(group, backward=True)

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has sent so far."""
        return self._ahead.sent_bytes + self._back.sent_bytes

    def split(self, x: Tensor, dim: int = 1) -> Tensor:
        """Returns this rank's part of a tensor: the first ranks take one position more where the
        length is no multiple of their number.

        Args:
            x: the same on all ranks.
            dim: of the positions.
        """
        return x.tensor_split(self.size, dim)[self.rank]

    def mean(self, total: Tensor, count: int | Tensor) -> Tensor:
        """Returns a loss whose gradients are those of the mean over all ranks' positions.

        Its value is the mean itself on every rank. The gradients of the parameters are to be added
        up over the ranks (``reduce_gradients``), as every rank has those of its own positions.

        Args:
            total: sum of the losses of this rank's positions; must depend on the model's output,
                also where there is none (multiply by zero), as the other ranks wait for it.
            count: number of positions that it is a sum of.
        """
        both = torch.stack([total.detach().double(), torch.as_tensor(count).to(total).double()])
        dist.all_reduce(both, group=self.group)
        own = total / both[1].clamp(min=1).to(total.dtype)
        return own + (both[0] / both[1].clamp(min=1)).to(total.dtype).detach() - own.detach()

    def reduce_gradients(self, model: nn.Module) -> None:
        """Adds up the gradients of all ranks, in place.

        Args:
            model: with the same parameters on all ranks.
        """
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=self.group)

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[nn.Module]:
        """Connects the model's mixers to those of the neighbouring ranks; all ranks enter, with
        parts of one sequence. A state that is given continues on rank 0; those that come out are
        the ones after this rank's last position. The backward pass may lie outside.

        Args:
            model: any module with mixers in it.

        Raises:
            ConfigError: if a mixer is not causal and not bidirectional.
        """
        handles, changed = [], []
        try:
            for mixer, link in self._links(model):
                ends = _Ends(link, mixer)
                handles.append(mixer.register_forward_pre_hook(ends.before, with_kwargs=True))
                handles.append(mixer.register_forward_hook(ends.after, with_kwargs=True))
                if self.recompute:
                    mixer.forward = partial(  # type: ignore[method-assign]
                        checkpoint, mixer.forward, use_reentrant=False
                    )
                    changed.append(mixer)
            yield model
        finally:
            for handle in handles:
                handle.remove()
            for mixer in changed:
                del mixer.forward
            self._ahead.flush()
            self._back.flush()

    def _links(self, model: nn.Module) -> Iterator[tuple[Mixer, Link]]:
        """Yields the outermost mixers, each with the direction in which it reads."""
        if isinstance(model, Bidirectional):
            yield model.fwd, self._ahead
            yield model.rev, self._back
        elif isinstance(model, Mixer):
            if not model.causal:
                name = type(model).__name__
                raise ConfigError(
                    f"{name} is not causal: it sees the whole sequence at once and cannot be run "
                    "over several ranks"
                )
            yield model, self._ahead
        else:
            for child in model.children():
                yield from self._links(child)


class _Ends:
    """Both ends of one mixer's part: its state comes from the rank before and goes to the next.

    Args:
        link: to the neighbours.
        mixer: the mixer.
    """

    def __init__(self, link: Link, mixer: Mixer) -> None:
        self.link, self.mixer = link, mixer
        self.tie: Tensor | None = None
        self.ids: Tensor | None = None
        self.last: Tensor | None = None  # id of the position before this part, (B, 1)

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Puts the state of the rank before into the call."""
        x, state, ids, rest = _arguments(*args, **kwargs)
        self.tie, self.ids = None, ids
        link = self.link
        if link.before is not None:
            if state is not None:
                raise ArgumentError(
                    "state", "continues the first rank's part; on the others it must be None"
                )
            state = self._received(x, ids)
        return (x, state, ids), rest

    def _received(self, x: Tensor, ids: Tensor | None) -> State:
        link = self.link
        assert link.before is not None
        names: list[str] = []
        anchor = torch.zeros((), device=x.device, requires_grad=torch.is_grad_enabled())
        self.tie, *tensors = Receive.apply(link, names, anchor)
        state = dict(zip(names, tensors))
        if ids is None:
            return state
        self.last = link.receive(ids.new_empty(ids.shape[0], 1), link.before)
        if not x.shape[1]:
            return state
        new = (ids[:, :1] != self.last)[:, 0].tolist()
        return MixerCarry(self.mixer).restart(state, new)

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
        """Passes the state on."""
        y, state = out
        y, *tensors = Send.apply(self.link, list(state), self.tie, y, *state.values())
        if self.link.after is not None and self.ids is not None:
            last = self.ids[:, -1:] if self.ids.shape[1] or self.last is None else self.last
            self.link.send(last, self.link.after)
        self.tie = self.ids = self.last = None
        return y, dict(zip(state, tensors))


def _arguments(
    x: Tensor, state: State | None = None, segment_ids: Tensor | None = None, **rest: Any
) -> tuple[Tensor, State | None, Tensor | None, dict[str, Any]]:
    """Returns the arguments of ``Mixer.forward``, however they were given."""
    return x, state, segment_ids, rest
