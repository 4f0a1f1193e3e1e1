r"""Selective scan (Mamba, arXiv 2312.00752): a linear recurrence whose coefficients depend on the input.

    Δ_t = softplus(delta_t + delta_bias)                      per channel d
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t                    per channel d and state n
    y_t = Σ_n C_t h_t + D u_t,   then   y_t · silu(z_t)

With a complex A the state is complex and y_t = 2 Re(Σ_n C_t h_t) + D u_t, as for conjugate pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _cuda_scan, _mamba_ssm, _native
from longseq.core.ops.backends import Backend, choose, cpu_reason, native

_NAME = "selective_scan"


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs the selective scan over a sequence.

    Args:
        u: input (B, L, D); float32, bfloat16, float16 or float64.
        delta: step sizes before bias and softplus (B, L, D).
        A: decays (D, N), real and usually negative, or complex.
        B: input map (B, L, N), or (B, L, G, N) shared by D/G channels each; complex if A is.
        C: output map, shaped as B.
        D: skip (D,).
        z: gate (B, L, D).
        delta_bias: added to delta (D,).
        delta_softplus: whether the softplus is applied.
        initial_state: (B, D, N); zero if None.
        resets: bool (B, L); where true the state is zeroed before the step.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, D) in u's dtype, and the final state (B, D, N), float32 or float64 (or their complex
        counterparts). Both are differentiable.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    B, C, resets = _check(u, delta, A, B, C, D, z, delta_bias, initial_state, resets)
    if backend == "mamba_ssm":
        return _mamba_ssm.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus
        )
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    reasons = {"cpu": cpu_reason(*tensors), "cuda": _cuda_scan.reason(*tensors, A=A)}
    if choose(_NAME, backend, reasons) == "reference":
        return selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias,
            delta_softplus=delta_softplus, initial_state=initial_state, resets=resets,
        )  # fmt: skip
    # Inside a torch.func transform, requires_grad says nothing about the outer levels.
    save = _native.in_transform() or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )
    y, final_state, _ = _call(
        u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus, save
    )
    return y, final_state


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence written out, one step at a time. Arguments as in ``selective_scan``."""
    dtype = _native.compute_dtype(u, A)
    cdtype = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
    batch, _, width = u.shape
    groups = B.shape[2] if B.dim() == 4 else 1
    x, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    if delta_softplus:
        dt = F.softplus(dt, threshold=40.0)  # torch's default, 20, is off by 2e-9 there: much in float64
    A = A.to(cdtype)
    if initial_state is None:
        h = torch.zeros(batch, width, A.shape[1], dtype=cdtype, device=u.device)
    else:
        h = initial_state.to(cdtype)

    def per_channel(m: Tensor) -> Tensor:  # (B, G, N) or (B, N) to (B, D, N)
        m = m.reshape(batch, groups, 1, A.shape[1]).to(cdtype)
        return m.expand(-1, -1, width // groups, -1).reshape(batch, width, A.shape[1])

    steps = zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1))
    outputs = []
    for t, (x_t, dt_t, B_t, C_t) in enumerate(steps):
        if resets is not None:
            h = torch.where(resets[:, t, None, None], torch.zeros_like(h), h)
        h = torch.exp(dt_t.unsqueeze(-1) * A) * h + (dt_t * x_t).unsqueeze(-1) * per_channel(B_t)
        y_t = (per_channel(C_t) * h).sum(-1)
        outputs.append(2 * y_t.real if y_t.is_complex() else y_t)
    y = torch.stack(outputs, 1)
    if D is not None:
        y = y + x * D.to(dtype)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Checks all arguments; returns B and C as (B, L, G, N) of A's kind, and resets as bool."""
    _native.check_kind(_NAME, True, u=u, delta=delta, **_native.present(D=D, z=z, delta_bias=delta_bias))
    _native.check_kind(_NAME, False, A=A, B=B, C=C, **_native.present(initial_state=initial_state))
    if u.dim() != 3 or u.shape[1] == 0:
        raise ArgumentError(f"{_NAME}: u must be (batch, length ≥ 1, channels), got {tuple(u.shape)}")
    batch, length, width = u.shape
    _native.check(_NAME, "delta", delta, u.shape, "(batch, length, channels)")
    if A.dim() != 2:
        raise ArgumentError(f"{_NAME}: A must be (channels, states), got {tuple(A.shape)}")
    states = A.shape[1]
    _native.check(_NAME, "A", A, (width, states), "(channels, states)")
    maps = []
    for name, m in (("B", B), ("C", C)):
        m = m.unsqueeze(2) if m.dim() == 3 else m
        groups = m.shape[2] if m.dim() == 4 else 1
        _native.check(_NAME, name, m, (batch, length, groups, states), "(batch, length, groups, states)")
        if groups == 0 or width % groups:
            raise ArgumentError(
                f"{_NAME}: {name} has {groups} groups, which must divide the {width} channels"
            )
        if m.is_complex() and not A.is_complex():
            raise ArgumentError(f"{_NAME}: {name} is complex, so A must be, got {A.dtype}")
        if A.is_complex() and not m.is_complex():
            m = m.to(torch.complex128 if _native.compute_dtype(u, A) == torch.float64 else torch.complex64)
        maps.append(m)
    if maps[0].shape[2] != maps[1].shape[2]:
        raise ArgumentError(f"{_NAME}: C must have B's {maps[0].shape[2]} groups, got {maps[1].shape[2]}")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            _native.check(_NAME, name, vector, (width,), "(channels,)")
    if z is not None:
        _native.check(_NAME, "z", z, u.shape, "(batch, length, channels)")
    if initial_state is not None:
        _native.check(
            _NAME, "initial_state", initial_state, (batch, width, states), "(batch, channels, states)"
        )
        if initial_state.is_complex() != A.is_complex():
            raise ArgumentError(f"{_NAME}: initial_state is {initial_state.dtype} but A is {A.dtype}")
    resets = _native.check_resets(_NAME, resets, batch, length)
    named = {"delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _native.check_device(_NAME, u, {**named, "initial_state": initial_state, "resets": resets})
    return maps[0], maps[1], resets


def _shapes(u: Tensor, A: Tensor, B: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shapes of the final state and of the saved states (private to the kernels)."""
    chunk, pad = 32, 16
    batch, length, width = u.shape
    groups, states = B.shape[2], A.shape[1]
    if u.device.type == "cuda":
        return (batch, width, states), (batch, _cuda_scan.saved_size(length, A))
    padded = groups * ((width // groups + pad - 1) // pad * pad)
    per_channel = 2 * states if A.is_complex() else states
    # In two dimensions: the number of chunks as a size of its own would be 1 or not, and bind torch.export.
    return (batch, width, states), (batch, (length + chunk - 1) // chunk * per_channel * padded)


def _arguments(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None, softplus: bool,
    states: Tensor | None,
) -> tuple[list[Any], list[Any], torch.dtype]:  # fmt: skip
    """Returns the kernels' arguments, the tensors that must outlive the call, and the compute dtype."""
    dtype = _native.compute_dtype(u, A)
    u, delta, B, C = (_native.strided(t) for t in (u, delta, B, C))
    z = None if z is None else _native.strided(z)
    vectors = [_native.vector(t, dtype) for t in (A, D, delta_bias, initial_state)]
    flags = None if resets is None else resets.to(torch.uint8).contiguous()
    batch, length, width = u.shape
    sizes = (batch, length, width, A.shape[1], B.shape[2])
    work = batch * length * width * A.shape[1]
    p = _native.pointer
    arguments = [
        sizes, softplus, A.is_complex(), _native.code(dtype), _native.threads(work), _native.across(u),
        _native.across(delta), p(vectors[0]), _native.across(B), _native.across(C), p(vectors[1]),
        _native.across(z),
        p(vectors[2]), p(vectors[3]), p(flags), p(states),
    ]  # fmt: skip
    return arguments, [u, delta, B, C, z, flags, states, *vectors], dtype


@torch.library.custom_op("longseq::selective_scan", mutates_args=(), device_types="cpu")
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None, delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, final_state, states = _scan_fake(
        u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus, save_states
    )
    if u.shape[2] // B.shape[2] % 16:
        states.zero_()  # the kernels leave the padding alone; an operator's outputs must be the same twice
    _native.fresh(y, states)
    arguments, alive, _ = _arguments(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        initial_state,
        resets,
        delta_softplus,
        states if save_states else None,
    )
    if y.numel():
        native().selective_scan_forward(*arguments, _native.across(y), final_state.data_ptr())
    del alive
    return y, final_state, states


@_scan.register_kernel("cuda")
def _scan_cuda(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None, delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    arguments = (u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus)
    y, final_state, states = _scan_fake(*arguments, save_states)
    if y.numel():
        _cuda_scan.forward(y, final_state, states if save_states else None, *arguments)
    return y, final_state, states


@_scan.register_fake
def _scan_fake(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None, delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = _native.compute_dtype(u, A)
    final, saved = _shapes(u, A, B)
    y = _native.empty_as(u)
    state_dtype = dtype if not A.is_complex() else torch.promote_types(dtype, torch.complex64)
    return y, u.new_empty(final, dtype=state_dtype), u.new_empty(saved if save_states else (0,), dtype=dtype)


@torch.library.custom_op("longseq::selective_scan_backward", mutates_args=(), device_types="cpu")
def _scan_backward(
    dy: Tensor, dfinal: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None,
    resets: Tensor | None, states: Tensor, delta_softplus: bool,
) -> list[Tensor]:  # fmt: skip
    outputs = _scan_backward_fake(
        dy, dfinal, u, delta, A, B, C, D, z, delta_bias, initial_state, resets, states, delta_softplus
    )
    if not u.numel():
        return [t.zero_() for t in outputs]
    arguments, alive, dtype = _arguments(
        u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus, states
    )
    batch, _, width = u.shape
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = outputs
    _native.fresh(du, ddelta, dz)
    # The kernel writes these in its compute dtype, whatever the arguments' dtypes are. It sums over time;
    # the sum over the batch is here, so that a row's part has its own place.
    state_dtype = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
    rows_A = A.new_empty((batch, *A.shape), dtype=state_dtype)
    rows_D, rows_bias = (u.new_empty((batch, width), dtype=dtype) for _ in range(2))
    wide_B, wide_C = (u.new_empty(B.shape, dtype=state_dtype) for _ in range(2))
    wide_initial = dinitial if dinitial.dtype == state_dtype else dinitial.to(state_dtype)
    dy = _native.strided(dy)
    dfinal = _native.vector(dfinal, dtype)
    native().selective_scan_backward(
        *arguments, _native.across(dy), _native.pointer(dfinal), _native.across(du), _native.across(ddelta),
        _native.across(dz if z is not None else None), rows_A.data_ptr(), wide_B.data_ptr(),
        wide_C.data_ptr(), rows_D.data_ptr(), rows_bias.data_ptr(),
        wide_initial.data_ptr() if initial_state is not None else 0,
    )  # fmt: skip
    del alive
    if wide_initial is not dinitial:
        dinitial.copy_(wide_initial)
    dA.copy_(rows_A.sum(0))
    dB.copy_(wide_B)
    dC.copy_(wide_C)
    if D is not None:
        dD.copy_(rows_D.sum(0))
    if delta_bias is not None:
        dbias.copy_(rows_bias.sum(0))
    return outputs


@_scan_backward.register_kernel("cuda")
def _scan_backward_cuda(
    dy: Tensor, dfinal: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None,
    resets: Tensor | None, states: Tensor, delta_softplus: bool,
) -> list[Tensor]:  # fmt: skip
    outputs = _scan_backward_fake(
        dy, dfinal, u, delta, A, B, C, D, z, delta_bias, initial_state, resets, states, delta_softplus
    )
    if not u.numel():
        return [t.zero_() for t in outputs]
    grads = _cuda_scan.backward(
        dy, dfinal, u, delta, A, B, C, D, z, delta_bias, initial_state, resets, states, delta_softplus
    )
    names = ("du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias", "dinitial")
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [
        out if argument is None else grads[name].to(argument.dtype)
        for name, argument, out in zip(names, given, outputs)
    ]


@_scan_backward.register_fake
def _scan_backward_fake(
    dy: Tensor, dfinal: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, initial_state: Tensor | None,
    resets: Tensor | None, states: Tensor, delta_softplus: bool,
) -> list[Tensor]:  # fmt: skip
    absent = u.new_empty((0,))
    rows = (u, delta, z)
    return [
        absent.clone()
        if t is None
        else _native.empty_as(t)
        if any(t is r for r in rows)
        else t.new_empty(t.shape)
        for t in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, softplus, save_states = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.softplus, ctx.save_states = softplus, save_states
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if not ctx.save_states:
        raise RuntimeError("longseq::selective_scan was called with save_states=False but needs a gradient")
    u, delta, A, B, C, D, z, delta_bias, initial_state, resets, states = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(u)
    grads = _call_backward(
        dy, dfinal, u, delta, A, B, C, D, z, delta_bias, initial_state, resets, states, ctx.softplus
    )
    kept = [g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)]
    return (*kept, None, None, None)


_scan.register_autograd(_backward, setup_context=_setup)
_native.register_autocast(_scan, lower=("u", "B", "C", "z"), keep=("A", "D", "delta_bias", "initial_state"))


def _scan_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0, 1, 3, 4, 6, 8, 9), info, in_dims, args), (0, 0, 0)


def _scan_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    # The gradients of A, D and delta_bias differ between vmapped samples, which therefore run one by one.
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 9


_call_backward = _native.transformable(_scan_backward, _scan_backward_vmap)
_call = _native.transformable(_scan, _scan_vmap, _setup, _backward)
