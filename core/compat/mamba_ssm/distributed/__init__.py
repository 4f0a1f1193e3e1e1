"""Layers split over processes, which longseq does not offer: their names, for one process."""

from __future__ import annotations

from longseq.core.compat._names import module_getattr

__getattr__ = module_getattr(__name__)
