"""Sequence mixers, one file each, behind one contract; see ``longseq.core.mixers.base``."""

from longseq.core.mixers.base import Mixer, State, create_mixer, list_mixers, register_mixer

__all__ = ["Mixer", "State", "create_mixer", "list_mixers", "register_mixer"]
