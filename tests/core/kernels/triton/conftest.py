"""Where the Triton kernels run: on a GPU, or by Triton's interpreter if the process was started
with it."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """Returns where the kernels run; skips where they cannot."""
    pytest.importorskip("triton", reason="triton is not installed (it is not made for this system)")
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU; test_interpreter.py runs this in a process with TRITON_INTERPRET=1")
    return "cpu"
