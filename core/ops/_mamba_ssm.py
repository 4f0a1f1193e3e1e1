"""The backend "mamba_ssm": hands calls of ``selective_scan`` and ``ssd`` to the mamba-ssm package, as a peer.

It is taken only where it is asked for by name. What the package cannot compute is refused with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import BackendError
from longseq.core.ops._triton import lowered
from longseq.core.ops.backends import choose

_SCAN = ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
_SSD = ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
_INSTALL = 'pip install "longseq[mamba-ssm]", on a machine with a CUDA compiler'
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_STATES = 256


@cache
def _load(module: str, function: str) -> tuple[Callable[..., Any] | None, str]:
    """Returns a function of the package, and why it is not there."""
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "mamba_ssm":
            return None, f"mamba-ssm is not installed: {_INSTALL}"
        return None, f"mamba-ssm does not load, it needs {error.name}: pip install {error.name}"
    except (ImportError, OSError) as error:  # an extension that was built for another torch
        return None, f"mamba-ssm does not load ({error}): reinstall it for torch {torch.__version__}"
    # Its recent versions leave the compiled scan out unless told otherwise, and say so at the first call.
    if getattr(loaded, "selective_scan_cuda", loaded) is None:
        return None, "this mamba-ssm was built without its scan (MAMBA_KEEP_CUDA_BUILD=TRUE keeps it)"
    return getattr(loaded, function), ""


def describe() -> tuple[bool, str]:
    """Returns whether the package's functions can be called here, and a note for ``longseq doctor``."""
    functions = (_load(*_SCAN), _load(*_SSD))
    missing = dict.fromkeys(why for function, why in functions if function is None)
    if all(function is None for function, _ in functions):
        return False, "; ".join(missing)
    if not torch.cuda.is_available():
        return False, "mamba-ssm is installed, but torch finds no CUDA device"
    names = [name for name, (there, _) in zip(("selective_scan", "ssd"), functions) if there is not None]
    note = f"{' and '.join(names)} by the mamba-ssm package, where asked for by name"
    return True, "; ".join([note, *missing])


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _unfit(rows: tuple[Tensor | None, ...], others: tuple[Tensor | None, ...]) -> str | None:
    """Returns why the package cannot take these tensors: activations ``rows``, parameters and states."""
    there = [tensor for tensor in (*rows, *others) if tensor is not None]
    for tensor in there:
        if tensor.is_complex():
            return "complex arguments are not handed to it"
        if tensor.dtype not in _DTYPES:
            return f"it computes in float32, and an argument is {tensor.dtype}"
        if not _on_gpu(tensor):
            return f"it runs on CUDA tensors, these are on {tensor.device}"
    return None


def _get(operator: str, where: tuple[str, str], reason: str | None) -> Callable[..., Any]:
    function, missing = _load(*where)
    choose(operator, "mamba_ssm", {"mamba_ssm": missing if function is None else reason})
    assert function is not None  # or ``choose`` has raised
    return function


class _NoGradient(torch.autograd.Function):
    """The identity of a tensor that must not be differentiated, because that would be silently wrong."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise BackendError(
            "selective_scan: mamba-ssm has no gradient of the final state; leave the state out of the loss, "
            "or take another backend"
        )


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Runs ``longseq.core.ops.selective_scan`` by ``selective_scan_fn``, channels first.

    Args:
        u: (B, L, D), of one dtype with delta, B, C and z; autocast lowers them alike.
        delta: (B, L, D).
        A: (D, N), real.
        B: (B, L, G, N).
        C: (B, L, G, N).
        D: (D,) or None.
        z: (B, L, D) or None.
        delta_bias: (D,) or None.
        initial_state: must be None.
        resets: must be None.
        delta_softplus: whether the softplus is applied.

    Returns:
        The output (B, L, D), and the final state (B, D, N) float32, which raises where it is differentiated.

    Raises:
        BackendError: if the package is absent or cannot compute this.
    """
    u, delta, B, C = lowered(u, delta, B, C)
    if z is not None:
        (z,) = lowered(z)
    reason = _unfit((u, delta, B, C, z), (A, D, delta_bias))
    if initial_state is not None:
        reason = "its scan starts from zero and takes no initial state"
    elif resets is not None:
        reason = "its scan has no resets inside a sequence"
    elif A.shape[1] > _MAX_STATES:
        reason = f"its scan takes up to {_MAX_STATES} states, this call has {A.shape[1]}"
    elif reason is None and len({t.dtype for t in (u, delta, B, C, z) if t is not None}) > 1:
        reason = "its scan needs u, delta, B, C and z in one dtype"
    scan = _get("selective_scan", _SCAN, reason)
    with torch.autocast(u.device.type, enabled=False):
        y, last = scan(
            u.transpose(1, 2).contiguous(),
            delta.transpose(1, 2).contiguous(),
            A.float().contiguous(),
            B.permute(0, 2, 3, 1).contiguous(),
            C.permute(0, 2, 3, 1).contiguous(),
            None if D is None else D.float().contiguous(),
            None if z is None else z.transpose(1, 2).contiguous(),
            None if delta_bias is None else delta_bias.float().contiguous(),
            delta_softplus,
            return_last_state=True,
        )
    return y.transpose(1, 2), _NoGradient.apply(last)


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, D: Tensor | None,
    z: Tensor | None, dt_bias: Tensor | None, initial_states: Tensor | None, resets: Tensor | None,
    dt_softplus: bool, dt_limit: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Runs ``longseq.core.ops.ssd`` by ``mamba_chunk_scan_combined``; arguments and result are ssd's.

    Resets become ``seq_idx``, the number of resets up to a position. An initial state belongs to index 0: a
    reset at position 0 clears it.

    Raises:
        BackendError: if the package is absent or cannot compute this.
    """
    x, B, C = lowered(x, B, C)
    if z is not None:
        (z,) = lowered(z)
    reason = _unfit((x, B, C, z), (dt, A, D, dt_bias, initial_states))
    if reason is None and len({t.dtype for t in (x, B, C, z) if t is not None}) > 1:
        reason = "it needs x, B, C and z in one dtype"
    scan = _get("ssd", _SSD, reason)
    index = None if resets is None else resets.to(torch.int32).cumsum(1, dtype=torch.int32)
    with torch.autocast(x.device.type, enabled=False):
        y, last = scan(
            x,
            dt,
            A.float(),
            B,
            C,
            max(16, 1 << (chunk_size - 1).bit_length()),
            D=None if D is None else D.float(),
            z=z,
            dt_bias=None if dt_bias is None else dt_bias.float(),
            initial_states=None if initial_states is None else initial_states.float().contiguous(),
            seq_idx=index,
            dt_softplus=dt_softplus,
            dt_limit=tuple(dt_limit),
            return_final_states=True,
        )
    return y, last.float()
