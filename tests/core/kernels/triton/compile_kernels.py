"""Compiles the Triton kernels to machine code for an architecture, on a machine without a GPU.

``python compile_kernels.py ARCHITECTURE DTYPE KEY_WIDTH VALUE_WIDTH CHUNK`` (90 bfloat16 64 64 64)
runs each operator forwards and backwards with a launcher that compiles in place of running, and
prints a line a kernel: name, shared memory in bytes, compile-time arguments.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from longseq.core.kernels.triton import (
    _delta_plan,
    _delta_steps,
    _plan,
    delta_rule,
    gla,
    linear_attention,
    mlstm,
)

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SHARED_LIMIT = (
    101376  # bytes a block may use on compute capability 8.6 and 8.9, the least since Ampere
)
_seen: set[str] = set()


def compile_in_place(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Takes the place of ``common.launch``."""
    options = {key: meta.pop(key) for key in ("num_warps", "num_stages") if key in meta}
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    aligned: dict[tuple[int], Any] = {}
    values = dict(zip(kernel.arg_names, args)) | meta
    for index, name in enumerate(kernel.arg_names):
        value = values[name]
        if (
            kernel.params[index].is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1)
        ):
            signature[name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
            if isinstance(value, Tensor) or value % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
    key = f"{kernel.fn.__name__} {signature} {constants} {options}"
    if key in _seen:
        return
    _seen.add(key)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=target, options=options
    )
    shared = compiled.metadata.shared
    print(kernel.fn.__name__, shared, meta, options, flush=True)
    assert shared <= SHARED_LIMIT, f"{kernel.fn.__name__}: {shared} bytes of shared memory"


def main() -> None:
    """Compiles every kernel in the forms that one configuration of each operator takes."""
    torch.set_num_threads(1)
    dtype = getattr(torch, sys.argv[2])
    key, value, chunk = (int(x) for x in sys.argv[3:])
    for module in (_plan, _delta_plan, _delta_steps, gla, mlstm):
        module.launch = compile_in_place  # type: ignore[attr-defined]
    q = torch.zeros(1, 128, 2, key, dtype=dtype, requires_grad=True)
    v = torch.zeros(1, 128, 4, value, dtype=dtype, requires_grad=True)
    state = torch.zeros(1, 4, key, value, requires_grad=True)
    gate = torch.zeros(1, 128, 4, requires_grad=True)
    decay = torch.zeros(1, 128, 2, key, requires_grad=True)
    skip = torch.zeros(4, value, requires_grad=True)
    wide = torch.zeros(1, 128, 4, key, dtype=dtype, requires_grad=True)
    y, last = linear_attention.attend(q, q, v, gate, 1.0, state, chunk, gate, skip)
    (y.sum() + last.sum()).backward()
    y, last = gla.attend(q, q, v, decay, 1.0, state, chunk)
    (y.sum() + last.sum()).backward()
    for given in (None, gate, decay):
        y, last = delta_rule.attend(q, q, v, gate, given, 1.0, state)
        (y.sum() + last.sum()).backward()
    y, (last, *_) = mlstm.mlstm(wide, wide, v, gate, gate, None, chunk, 1e-6)
    (y.sum() + last.sum()).backward()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder  # what other processes compiled shows nothing here
        main()
