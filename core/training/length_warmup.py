"""Sequence-length warm-up: short sequences in large batches first, at the same number of tokens a
batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError


class LengthWarmup:
    """A pure function from the training step to (batch size, length); a resumed run needs no state.

    Either give ``stages``, or ``start_length`` and ``steps``: the length then doubles from
    ``start_length`` until it reaches ``length``, in equal parts of ``steps``. With neither there is
    no warm-up. The batch grows as the sequence shrinks: ``batch_size * length`` tokens per batch
    (rounded down to whole rows).

    Args:
        length: final length.
        batch_size: rows at the final length.
        start_length: first length, at most ``length``.
        steps: training steps until the final length.
        stages: ``[step, length]`` pairs in ascending steps, the first at step 0; the last length
            holds on.

    Raises:
        ConfigError: for contradictory or impossible values.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        start_length: int | None = None,
        steps: int = 0,
        stages: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.length, self.batch_size = (
            check_positive("length", length),
            check_positive("batch_size", batch_size),
        )
        if stages is not None and (start_length is not None or steps):
            raise ConfigError("give either stages, or start_length and steps, not both")
        if (start_length is None) != (steps == 0):
            raise ConfigError("length warm-up needs both start_length and steps (or neither)")
        if stages is not None:
            self.stages = [(int(step), int(size)) for step, size in stages]
        elif start_length is not None:
            self.stages = _doubling(check_positive("start_length", start_length), length, steps)
        else:
            self.stages = [(0, length)]
        at = [step for step, _ in self.stages]
        if not at or at[0] != 0 or any(a >= b for a, b in pairwise(at)):
            raise ConfigError(f"stages must start at step 0 and ascend, got steps {at}")
        for _, size in self.stages:
            check_positive("length of a stage", size)
            if size > batch_size * length:
                raise ConfigError(
                    f"a stage of length {size} exceeds the {batch_size * length} tokens of a batch"
                )

    def schedule(self, step: int) -> tuple[int, int]:
        """Returns batch size and length at a training step.

        Args:
            step: index of the batch, from 0 (with gradient accumulation: of the micro-batch).
        """
        size = next(size for start, size in reversed(self.stages) if step >= start)
        return max(1, self.batch_size * self.length // size), size


def _doubling(start_length: int, length: int, steps: int) -> list[tuple[int, int]]:
    """Returns stages that double from ``start_length`` to ``length``, the last one at ``steps``."""
    if start_length > length:
        raise ConfigError(
            f"start_length ({start_length}), where the length warm-up begins, must not exceed "
            f"length ({length}): lower it too, or leave the warm-up out (start_length null, no "
            "steps)"
        )
    check_positive("steps", steps)
    lengths = [start_length]
    while lengths[-1] < length:
        lengths.append(min(2 * lengths[-1], length))
    parts = max(1, len(lengths) - 1)
    # Few steps: the longer wins.
    stages = {index * steps // parts: size for index, size in enumerate(lengths)}
    return sorted(stages.items())
