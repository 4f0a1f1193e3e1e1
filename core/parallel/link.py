"""States on their way from one rank to the next, and their gradients on the way back."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longseq.core.mixers import State

_DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64),
    *(torch.complex128, torch.int64, torch.int32, torch.uint8, torch.bool),
)


class Link:
    """Tensors to the next rank and from the one before, in the order of the calls.

    Args:
        group: process group whose ranks hold consecutive parts of the sequence; None for all.
        backward: whether the sequence is read from its end: the next rank is the one before.
    """

    def __init__(self, group: Any = None, backward: bool = False) -> None:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        step = -1 if backward else 1
        ranks = [dist.get_global_rank(group, i) if group is not None else i for i in range(size)]
        self.group = group
        self.before = ranks[rank - step] if 0 <= rank - step < size else None
        self.after = ranks[rank + step] if 0 <= rank + step < size else None
        self.sent_bytes = 0
        self._waiting: deque[tuple[Any, Tensor]] = deque()

    def send(self, tensor: Tensor, rank: int) -> None:
        """Sends a tensor without waiting for its arrival.

        Args:
            tensor: any shape; complex ones go as pairs of real ones, bools as bytes.
            rank: global number of the receiver.
        """
        while self._waiting and self._waiting[0][0].is_completed():
            self._waiting.popleft()[0].wait()
        plain = _plain(tensor.detach()).contiguous()
        self.sent_bytes += plain.numel() * plain.element_size()
        if plain.numel():
            self._waiting.append((dist.isend(plain, rank, self.group), plain))

    def receive(self, like: Tensor, rank: int) -> Tensor:
        """Returns a tensor of the shape, dtype and device of another.

        Args:
            like: only its shape, dtype and device count.
            rank: global number of the sender.
        """
        out = torch.empty_like(like, memory_format=torch.contiguous_format)
        if out.numel():
            dist.recv(_plain(out), rank, self.group)
        return out

    def flush(self) -> None:
        """Waits until everything has been sent."""
        while self._waiting:
            self._waiting.popleft()[0].wait()

    def send_state(self, state: State, rank: int) -> None:
        """Sends a state: what its tensors are, then their values.

        Args:
            state: of a mixer.
            rank: global number of the receiver.
        """
        entries = [[name, _DTYPES.index(one.dtype), *one.shape] for name, one in state.items()]
        text = torch.frombuffer(bytearray(json.dumps(entries).encode()), dtype=torch.uint8)
        device = next((one.device for one in state.values()), torch.device("cpu"))
        self.send(torch.tensor([len(text)], device=device), rank)
        self.send(text.to(device), rank)
        for one in state.values():
            self.send(one, rank)

    def receive_state(self, device: torch.device, rank: int) -> State:
        """Returns a state.

        Args:
            device: where.
            rank: global number of the sender.
        """

        def new(shape: list[int], dtype: torch.dtype) -> Tensor:
            return self.receive(torch.empty(shape, dtype=dtype, device=device), rank)

        text = new([int(new([1], torch.int64))], torch.uint8).cpu().numpy().tobytes()
        return {name: new(shape, _DTYPES[kind]) for name, kind, *shape in json.loads(text)}


def _plain(tensor: Tensor) -> Tensor:
    """Returns a view that every backend can send."""
    if tensor.is_complex():
        return torch.view_as_real(tensor)
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _has_gradient(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class Receive(torch.autograd.Function):
    """A state from the rank before; its gradient goes back to where it came from."""

    @staticmethod
    def forward(ctx: Any, link: Link, names: list[str], anchor: Tensor) -> tuple[Tensor, ...]:
        """Returns a scalar that ties the state to the output, and the state's tensors; ``names``,
        empty before, takes their names."""
        assert link.before is not None
        ctx.link = link
        state = link.receive_state(anchor.device, link.before)
        names += state
        tensors = list(state.values())
        ctx.differentiable = [_has_gradient(one) for one in tensors]
        ctx.mark_non_differentiable(*[o for o, d in zip(tensors, ctx.differentiable) if not d])
        return (torch.zeros_like(anchor), *tensors)

    @staticmethod
    def backward(ctx: Any, _: Tensor, *gradients: Tensor) -> Any:
        """Sends the gradients of the state."""
        for gradient, differentiable in zip(gradients, ctx.differentiable):
            if differentiable:
                ctx.link.send(gradient, ctx.link.before)
        return None, None, None


class Send(torch.autograd.Function):
    """A state to the next rank; its gradient comes from there.

    The output passes through, so that its gradient is what makes this rank wait for the next one's,
    and the scalar of ``Receive``, so that this rank always answers the one before.
    """

    @staticmethod
    def forward(
        ctx: Any, link: Link, names: list[str], tie: Tensor | None, y: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns the output and the state as they are."""
        ctx.link, ctx.tied = link, tie is not None
        ctx.like = [torch.empty_like(one, device="meta") for one in state]
        ctx.device = y.device
        if link.after is not None:
            link.send_state(dict(zip(names, state)), link.after)
        return (y.view_as(y), *[one.view_as(one) for one in state])

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, *of_state: Tensor) -> Any:
        """Adds what the next rank sends to the gradients of the state."""
        gradients: list[Tensor | None] = []
        for like, own in zip(ctx.like, of_state):
            if not _has_gradient(like):
                gradients.append(None)
                continue
            if ctx.link.after is not None:
                other = ctx.link.receive(torch.empty_like(like, device=ctx.device), ctx.link.after)
                own = other if own is None else own + other
            gradients.append(own)
        tie = torch.zeros((), device=ctx.device) if ctx.tied else None
        return None, None, tie, of_y, *gradients
