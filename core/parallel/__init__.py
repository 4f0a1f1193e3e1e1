"""One sequence over several processes: each holds a part of the positions and passes states on."""

from longseq.core.parallel.context import ContextParallel

__all__ = ["ContextParallel"]
