"""The random stream of training: what dropout draws, kept apart from validation and
checkpointed."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

RngState = dict[str, Any]
"""States of the generators as tensors and plain Python values, which ``weights_only`` loading
accepts."""


def get_rng_state() -> RngState:
    """Returns the states of torch (CPU and, where in use, the current CUDA device), numpy and
    ``random``."""
    # The global numpy generator is what third-party code draws from, hence the legacy calls.
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    state: RngState = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
        ],
        "numpy_gauss": float(gauss),
        "python": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: RngState) -> None:
    """Restores what ``get_rng_state`` returned.

    Args:
        state: from ``get_rng_state``; the CUDA part is ignored where there is no CUDA device.
    """
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, position, has_gauss = state["numpy"]
    legacy = (kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, state["numpy_gauss"])
    np.random.set_state(legacy)  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def untouched_seed() -> int | None:
    """Returns the seed of ``seed_everything`` if torch has drawn nothing since; else None."""
    seed = torch.initial_seed()
    if os.environ.get("PL_GLOBAL_SEED") != str(seed):
        return None
    fresh = torch.Generator().manual_seed(seed).get_state()
    return seed if torch.equal(fresh, torch.get_rng_state()) else None


class RngStream:
    """Continues one random stream from training batch to training batch, whatever draws numbers in
    between.

    ``enter`` before each training batch, ``leave`` after it. A validation run, a sanity check or a
    new epoch's data loader draw numbers between two batches, and a resumed run does not repeat all
    of these; because they are outside the stream, batch n sees the same numbers in a resumed run as
    in a whole one.
    """

    def __init__(self) -> None:
        self._state: RngState | None = None
        self._inside = False

    def enter(self) -> None:
        """Takes the stream up where the last batch left it; the first batch begins it, on each rank
        another one."""
        if self._state is not None:
            set_rng_state(self._state)
        elif rank := _rank():  # all ranks were seeded alike, and would drop the same units
            _seed(torch.initial_seed(), rank)
        self._inside = True

    def leave(self) -> None:
        """Puts the stream aside until the next batch."""
        self._state = get_rng_state()
        self._inside = False

    def state_dict(self) -> list[RngState]:
        """Returns the stream's state on every rank; a collective call where ranks are several."""
        state = get_rng_state() if self._inside or self._state is None else self._state
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return [state]
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, state)
        return states

    def load_state_dict(self, states: list[RngState]) -> None:
        """Continues from ``states``; with another number of ranks than was saved, only rank 0 does.

        Args:
            states: from ``state_dict``; empty to begin a new stream.
        """
        rank = _rank()
        self._state, self._inside = (states[rank] if rank < len(states) else None), False


def _rank() -> int:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if initialised else 0


def _seed(seed: int, rank: int) -> None:
    """Seeds every generator for a rank: unlike any other rank of any seed."""
    own = np.random.SeedSequence([seed, rank]).generate_state(3)
    torch.manual_seed(int(own[0]))
    np.random.seed(int(own[1]))  # noqa: NPY002
    random.seed(int(own[2]))
