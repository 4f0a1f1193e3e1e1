"""What ``longseq run`` changes of torch where there is no GPU."""

from __future__ import annotations

from typing import Any

import torch


class _Device(torch.cuda.device):
    """``torch.cuda.device`` that does nothing for a CPU, where torch's raises."""

    def __init__(self, device: Any) -> None:
        self.passes = isinstance(device, str | torch.device) and torch.device(device).type == "cpu"
        if not self.passes:
            super().__init__(device)

    def __enter__(self) -> None:
        if not self.passes:
            super().__enter__()

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if not self.passes:
            super().__exit__(type, value, traceback)


def accept_cpu_devices() -> None:
    """Has ``with torch.cuda.device(x.device)`` pass for an x on a CPU, on a machine without a GPU.

    Published model code (VMamba's) has that line around its own CPU path. Nothing that works with
    torch alone changes.
    """
    if not torch.cuda.is_available():
        torch.cuda.device = _Device  # type: ignore[misc]
