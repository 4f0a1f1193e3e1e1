"""Checkpoints: read without ever executing code, checked against the model, written whole or not at all."""

from longseq.core.checkpoints.safe import (
    check_state_dict,
    load_checkpoint,
    load_task,
    load_weights,
    read_weights,
    save_weights,
)

__all__ = ["check_state_dict", "load_checkpoint", "load_task", "load_weights", "read_weights", "save_weights"]
