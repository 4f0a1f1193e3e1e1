"""The stand-in for accelerated-scan: first-order recurrences (B, C, T) on longseq's linear scan."""

from __future__ import annotations

from longseq.core.compat._names import module_getattr

__version__ = "0.3.1+longseq"  # the release whose signatures these are
__getattr__ = module_getattr(__name__)
