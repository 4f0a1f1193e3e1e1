"""Checkpoints: read without ever executing code, checked against the model, written whole or not at
all."""

from longseq.core.checkpoints.layouts import (
    LAYOUTS,
    load_published,
    read_state_dict,
    save_published,
)
from longseq.core.checkpoints.safe import (
    check_state_dict,
    load_checkpoint,
    load_weights,
    read_weights,
    save_weights,
)

__all__ = [
    "LAYOUTS",
    "check_state_dict",
    "load_checkpoint",
    "load_published",
    "load_weights",
    "read_state_dict",
    "read_weights",
    "save_published",
    "save_weights",
]
