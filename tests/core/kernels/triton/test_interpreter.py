"""Without a GPU: the operators' tests in a process of their own, by Triton's interpreter; and
compiling.

Triton reads TRITON_INTERPRET when it is imported, which torch may have done long before a test asks
for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent


def in_process(*command: str, interpret: bool) -> str:
    pytest.importorskip("triton", reason="triton is not installed (it is not made for this system)")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    run = subprocess.run(
        [sys.executable, *command],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return run.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests themselves run on the GPU")
@pytest.mark.parametrize("file", ["test_operators.py", "test_half_precision.py"])
def test_operators_by_the_interpreter(file: str) -> None:
    out = in_process("-m", "pytest", "-p", "no:cacheprovider", file, interpret=True)
    assert " passed" in out and "skipped" not in out, out[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself")
def test_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    out = in_process("compile_kernels.py", "90", "bfloat16", "16", "16", "16", interpret=False)
    compiled = {line.split()[0] for line in out.splitlines()}
    assert compiled == {
        "chunk_states",
        "pass_states",
        "chunk_apply",
        "gate_gradients",
        "running_maximum",
        "collect_backwards",
        "decay_rows",
        "channel_scores",
        "channel_scores_backward",
        "finish_gradients",
        "channel_products",
        "channel_products_backward",
        "invert_chunks",
        "write_forms",
        "walk",
        "walk_back",
        "chunk_gradients",
        "pair_gradients",
        "join_gradients",
    }
