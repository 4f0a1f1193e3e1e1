"""Selective scan on CUDA: block shapes, the split of a long sequence, and the kernels'
arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.kernels.cuda_sources import parameters
from longseq.core.ops import cuda_calls as _cuda
from longseq.core.ops.selective_scan.arguments import Arguments

MAX_STATES = 64
"""Real numbers of state per channel: 64 real states or 32 complex ones."""
SAVED = 32
"""Positions between two saved states."""
PARTIAL_BYTES = 1 << 29
"""Of the parts of dB and dC, one per block of channels: a backward pass that would need more runs
in pieces."""
_STRUCT = "ScanParams"
_FORWARD, _BACKWARD = "selective_scan.cu", "selective_scan_backward.cu"


def reason(x: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    why = _cuda.cuda_reason(*x[:9])
    if why is None and not 0 < _numbers(x.A) <= MAX_STATES:
        why = (
            f"it takes 1 to {MAX_STATES} real or {MAX_STATES // 2} complex states, "
            f"this call has {x.A.shape[1]}"
        )
    return why


def _numbers(A: Tensor) -> int:
    return A.shape[1] * (2 if A.is_complex() else 1)


def saved_size(length: int, A: Tensor) -> int:
    """Returns how many numbers are saved for a row: (ceil(L / SAVED), N, D), complex ones as
    two."""
    return (length + SAVED - 1) // SAVED * _numbers(A) * A.shape[0]


@dataclass(frozen=True)
class Plan:
    """A block's shape and how many there are.

    Args:
        channels: that a block serves.
        warps: of a block.
        tiles: blocks side by side for the channels of a group.
        chunk: positions per chunk.
        chunks: of the sequence.
        group: states taken at a time.
        blocks: of a multiprocessor, which the registers must allow.
    """

    channels: int
    warps: int
    tiles: int
    chunk: int
    chunks: int
    group: int = 2
    blocks: int = 1


def plan(u: Tensor, A: Tensor, groups: int, backward: bool = False) -> Plan:
    """Returns the grid's shape: wide blocks where they fill the device, narrow ones or a split
    where not.

    Args:
        u: input (B, L, D).
        A: decays (D, N).
        groups: of the maps B and C.
        backward: whether it is for the backward pass.
    """
    batch, length, width = u.shape
    numbers, per_group = _numbers(A), width // groups
    # 64 numbers of state leave shared memory for few channels; an odd N has too few gradients at a
    # time to be shared out to 32 lanes.
    channels, warps = (32, 4) if numbers <= 32 else (16, 2)
    if A.shape[1] % 2:
        channels = 16
    blocks = batch * groups * math.ceil(per_group / channels)
    if numbers <= 32 and (per_group <= 8 or blocks < 3 * _cuda.multiprocessors(u.device)):
        channels = 8
    tiles = math.ceil(per_group / channels)
    tile = warps * (32 // channels) * 8
    chunk, chunks = _cuda.split(length, batch * groups * tiles, tile, u.device)
    group = math.gcd(A.shape[1], 2 if backward or A.is_complex() else 4)
    return Plan(channels, warps, tiles, chunk, chunks, group, 8 // warps)


def piece(shape: Plan, batch: int, groups: int, states: int, item: int) -> int:
    """Returns how many positions of each chunk a launch of the backward pass covers: all, or whole
    tiles.

    Args:
        shape: the grid's.
        batch: rows.
        groups: of the maps.
        states: N.
        item: bytes of a state.
    """
    a_position = 2 * item * shape.tiles * batch * shape.chunks * groups * states
    tile = shape.warps * (32 // shape.channels) * 8
    fit = PARTIAL_BYTES // a_position // tile * tile
    return shape.chunk if fit >= shape.chunk else max(fit, tile)


class _Call:
    """One call's tensors in the kernels' layout, its plan, macros and common arguments."""

    def __init__(self, x: Arguments, backward: bool = False) -> None:
        u, delta, A, B, C, D, z, bias, initial, resets, softplus = x
        self.device, self.state = u.device, torch.complex64 if A.is_complex() else torch.float32
        self.batch, self.length, self.width = u.shape
        self.groups, self.states = B.shape[2], A.shape[1]
        maps = torch.promote_types(B.dtype, C.dtype)
        B, C = B.to(maps), C.to(maps)
        row_tensors = [None if t is None else _cuda.dense(t) for t in (u, delta, B, C, z)]
        dense = [_cuda.parameter(t) for t in (A, D, bias, initial)]
        self.alive: list[Tensor | None] = [*row_tensors, *dense, _cuda.flags(resets)]
        self.plan = plan(u, A, self.groups, backward)
        self.defines: dict[str, str | int] = {
            "LONGSEQ_COMPLEX": int(A.is_complex()),
            "LONGSEQ_STATES": self.states,
            "LONGSEQ_CHANNELS": self.plan.channels,
            "LONGSEQ_WARPS": self.plan.warps,
            "LONGSEQ_GROUP": self.plan.group,
            "LONGSEQ_BLOCKS": self.plan.blocks,
            "LONGSEQ_RESETS": int(resets is not None),
            "LONGSEQ_SAVED": SAVED,
            "LONGSEQ_GATED": int(z is not None),
            "LONGSEQ_U": _cuda.type_of(u),
            "LONGSEQ_DELTA": _cuda.type_of(delta),
            "LONGSEQ_MAPS": _cuda.type_of(B),
            "LONGSEQ_Z": _cuda.type_of(z),
        }
        self.values = {
            "batch": self.batch,
            "length": self.length,
            "channels": self.width,
            "groups": self.groups,
            "tiles": self.plan.tiles,
            "chunk": self.plan.chunk,
            "chunks": self.plan.chunks,
            "piece": self.plan.chunk,
            "softplus": int(softplus),
            **_cuda.rows(**dict(zip(("u", "delta", "B", "C", "z"), row_tensors))),
            **_cuda.addresses(
                **dict(zip(("A", "D", "bias", "initial"), dense)), resets=self.alive[-1]
            ),
        }

    def per_chunk(self, *, dtype: torch.dtype | None = None, states: bool = True) -> Tensor:
        shape = (self.batch, self.plan.chunks, self.states, self.width)
        if not states:
            shape = (self.batch, self.plan.chunks, 1, self.width)
        return torch.empty(shape, dtype=dtype or self.state, device=self.device)

    def launch(self, source: str, kernel: str, **values: int) -> None:
        p, defines = self.plan, dict(self.defines)
        if source == _FORWARD:
            defines["LONGSEQ_GATED"] = 0  # looked at in the backward only
        arguments = parameters(source, _STRUCT, self.values | values)
        if kernel.startswith("scan_join"):
            grid, threads = (math.ceil(self.batch * self.states * self.width / 128),), 128
        else:
            grid, threads = (self.batch * self.groups * p.tiles, p.chunks), 32 * p.warps  # type: ignore[assignment]
        nvrtc.launch(source, kernel, defines, grid, threads, arguments, self.device)

    def summarise(self) -> dict[str, Tensor]:
        """Runs over the chunks one by one: their final states from zero, sums of dt, and resets."""
        parts = {
            "local": self.per_chunk(),
            "sums": self.per_chunk(dtype=torch.float32, states=False),
            "shut": torch.empty(
                self.batch, self.plan.chunks, dtype=torch.uint8, device=self.device
            ),
        }
        self.launch(_FORWARD, "scan_summary", **_cuda.addresses(**parts))
        return parts


def forward(y: Tensor, final: Tensor, saved: Tensor | None, x: Arguments) -> None:
    """Fills y, final and saved.

    Args:
        y: (B, L, D), dense.
        final: (B, D, N), dense.
        saved: ``saved_size`` numbers per row; None where no gradient is wanted.
        x: the call; B and C are (B, L, G, N).
    """
    call = _Call(x)
    starts = None
    if call.plan.chunks > 1:
        parts, starts = call.summarise(), call.per_chunk()
        call.launch(_FORWARD, "scan_join", **_cuda.addresses(starts=starts, **parts))
    outputs = _cuda.rows(y=y) | _cuda.addresses(final=final, saved=saved, starts=starts)
    call.launch(_FORWARD, "scan_forward", **outputs)


def backward(dy: Tensor, dfinal: Tensor | None, x: Arguments, saved: Tensor) -> dict[str, Tensor]:
    """Returns gradients by name: du, ddelta, dz in the arguments' dtypes, the others float32 or
    complex64.

    Arguments as in ``forward``, with what it saved.
    """
    call = _Call(x, backward=True)
    dy, dfinal = _cuda.dense(dy.to(x.u.dtype)), _cuda.parameter(dfinal)
    back = None
    if call.plan.chunks > 1:
        parts, back, back_local = call.summarise(), call.per_chunk(), call.per_chunk()
        call.launch(
            _BACKWARD,
            "scan_back_summary",
            **_cuda.rows(dy=dy),
            **_cuda.addresses(back_local=back_local),
        )
        call.launch(
            _FORWARD,
            "scan_join_back",
            **_cuda.addresses(dfinal=dfinal, back=back, back_local=back_local, **parts),
        )
    new: dict[str, Any] = {
        name: torch.empty(t.shape, dtype=t.dtype, device=x.u.device)
        for name, t in (("du", x.u), ("ddelta", x.delta), ("dz", x.z))
        if t is not None
    }
    new["dA"] = call.per_chunk()
    new["dD"], new["dbias"] = (call.per_chunk(dtype=torch.float32, states=False) for _ in range(2))
    if x.initial_state is not None:
        new["dinitial"] = torch.empty(x.initial_state.shape, dtype=call.state, device=x.u.device)
    dB, dC = _backward_pieces(call, dy, dfinal, back, saved, new)
    new["dB"], new["dC"] = dB[:, : call.length], dC[:, : call.length]
    new["dA"] = new["dA"].sum((0, 1)).t().contiguous()
    new["dD"], new["dbias"] = new["dD"].sum((0, 1, 2)), new["dbias"].sum((0, 1, 2))
    return new


def _backward_pieces(
    call: _Call,
    dy: Tensor,
    dfinal: Tensor | None,
    back: Tensor | None,
    saved: Tensor,
    new: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Runs the backward kernel over the pieces of the chunks, the last first.

    Args:
        call: its plan and arguments.
        dy: gradient of the output.
        dfinal: gradient of the final state (B, D, N), or None.
        back: gradient that enters each chunk from its right (B, chunks, N, D); None for one chunk.
        saved: what the forward pass saved.
        new: gradients to be filled, but for B and C.

    Returns:
        The gradients of B and C, (B, chunks * chunk, G, N): beyond the sequence's end they mean
        nothing.
    """
    p, size = call.plan, call.state.itemsize
    width = piece(p, call.batch, call.groups, call.states, size)
    if width < p.chunk and back is None:  # what hands q from one piece to the next
        back = call.per_chunk()
        back.zero_() if dfinal is None else back.copy_(dfinal.transpose(1, 2).unsqueeze(1))
    fixed = _cuda.rows(dy=dy) | _cuda.addresses(dfinal=dfinal, back=back, saved=saved, **new)
    whole = (call.batch, p.chunks, p.chunk, call.groups, call.states)
    dB, dC = (torch.empty(whole, dtype=call.state, device=call.device) for _ in range(2))
    starts = range(0, p.chunk, width)
    for offset in reversed(starts):
        length = min(width, p.chunk - offset)
        shape = (p.tiles, call.batch, p.chunks, length, call.groups, call.states)
        parts = [torch.empty(shape, dtype=call.state, device=call.device) for _ in range(2)]
        call.launch(
            _BACKWARD,
            "scan_backward",
            **fixed,
            **_cuda.addresses(dB=parts[0], dC=parts[1]),
            piece=length,
            offset=offset,
            resume=int(offset != starts[-1]),
        )
        for total, part in zip((dB, dC), parts):
            total[:, :, offset : offset + length] = part.sum(0)
    return dB.flatten(1, 2), dC.flatten(1, 2)
