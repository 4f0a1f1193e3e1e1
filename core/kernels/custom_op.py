"""Custom operators of torch from records: the list of arguments is written once, as a
NamedTuple."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

_KINDS: dict[object, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "SymInt",
    float: "float",
}
Impl = Callable[..., Any]
_PLAIN = (Tensor, torch.nn.Parameter)
several: Callable[[Tensor], bool] = getattr(
    torch._C._functorch, "is_legacy_batchedtensor", lambda one: False
)
"""Whether a gradient stands for several at once, as with ``is_grads_batched``: it has no memory to
point at, and no transform is on. A version of torch that does not say so raises where a kernel asks
for the address."""


def define(
    name: str,
    records: Sequence[type[Any]],
    returns: int | None,
    fake: Impl,
    *,
    cpu: Impl | None = None,
    cuda: Impl | None = None,
    everywhere: Impl | None = None,
    rows: Iterable[str] | None = None,
    setup: Impl | None = None,
    backward: Impl | None = None,
    composed: Impl | None = None,
    lower: Iterable[str] = (),
    keep: Iterable[str] = (),
) -> Callable[..., Any]:
    """Registers a custom operator whose arguments are the fields of records, one record after the
    other.

    ``fake`` and the implementations take the records; torch's operator takes their fields.

    Args:
        name: "namespace::operator".
        records: NamedTuples whose fields are tensors, absent tensors, bools, integers and floats.
        returns: number of tensors in its result; None for a list of them.
        fake: returns results of the right shape and dtype, empty.
        cpu: the implementation for CPU tensors.
        cuda: that for CUDA tensors.
        everywhere: that for tensors on any other device.
        rows: names of arguments whose first dimension is the batch, into which vmap is folded; None
            where a result sums over the batch, so that vmapped samples run one by one.
        setup: called with autograd's context, the output, and the records.
        backward: called with autograd's context and the gradients.
        composed: the same results of the records in torch's own operations: what forward-mode
            derivatives (jvp) are taken of, and, without ``backward``, gradients by recomputation.
            Without it the former are refused, and without both any.
        lower: names of arguments that are activations: autocast casts them to its dtype.
        keep: names of arguments (decays, biases, states) that autocast raises to float32.

    Returns:
        A function of the fields, which works inside torch.func transforms too. Its ``op`` is the
        operator.
    """
    hints = [pair for record in records for pair in get_type_hints(record).items()]
    arguments = ", ".join(f"{_KINDS[kind]} {field}" for field, kind in hints)
    result = {None: "Tensor[]", 1: "Tensor"}.get(
        returns
    ) or f"({', '.join(['Tensor'] * (returns or 0))})"
    names = [field for field, _ in hints]
    sizes = [len(get_type_hints(record)) for record in records]
    bounds = [(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]

    new = tuple.__new__  # as the record itself does it, without a call in between

    def packed(args: tuple[Any, ...]) -> list[Any]:
        return [new(record, args[low:high]) for record, (low, high) in zip(records, bounds)]

    def taking(impl: Impl) -> Impl:
        if len(records) == 1:
            (only,) = records
            return lambda *args: impl(new(only, args))
        if len(records) == 2:
            (first, second), cut = records, sizes[0]
            return lambda *args: impl(new(first, args[:cut]), new(second, args[cut:]))
        return lambda *args: impl(*packed(args))

    main, device = (cpu, "cpu") if everywhere is None else (everywhere, None)
    assert main is not None
    op: Any = torch.library.custom_op(
        name,
        taking(main),
        mutates_args=(),
        device_types=device,
        schema=f"({arguments}) -> {result}",
    )
    if everywhere is not None and cpu is not None:
        op.register_kernel("cpu")(taking(cpu))
    if cuda is not None:
        op.register_kernel("cuda")(taking(cuda))
    op.register_fake(taking(fake))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if setup is not None:
            setup(ctx, output, *packed(inputs))

    if backward is None:
        setup_context, backward = _recomputed(name, composed, packed)
    op.register_autograd(backward, setup_context=setup_context)
    lower, keep = frozenset(lower), frozenset(keep)
    if lower or keep:
        _register_autocast(op, names, lower, keep)
    folded = None if rows is None else [names.index(one) for one in rows]

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if folded is None:
            found = _vmap_loop(call, info, in_dims, args)
        else:
            found = _vmap_fold(call, folded, info, in_dims, args)
        return found, 0 if isinstance(found, Tensor) else (0,) * len(found)

    transformable = _transformable(op, vmap, setup_context, backward)
    on_cpu = taking(cpu or main)

    def call(*args: Any) -> Any:
        # The dispatcher costs tens of microseconds, and its first call imports torch's compiler.
        if seen_by(args) is None:
            out = on_cpu(*args)
            return out if isinstance(out, Tensor) else list(out) if returns is None else tuple(out)
        if in_forward_mode():
            if composed is not None:
                return composed(*packed(cast(args)))
            _refuse_tangents(name, args)
        return transformable(*args)

    def cast(args: tuple[Any, ...]) -> tuple[Any, ...]:
        device = next(one.device.type for one in args if isinstance(one, Tensor))
        if device == "meta" or not torch.is_autocast_enabled(device):
            return args
        return _autocast(names, args, lower, keep, torch.get_autocast_dtype(device))

    call.op = op  # type: ignore[attr-defined]
    return call


def _autocast(
    names: Sequence[str],
    args: Sequence[Any],
    lower: frozenset[str],
    keep: frozenset[str],
    target: torch.dtype,
) -> tuple[Any, ...]:
    """Returns the arguments as autocast gives them to an operator."""
    found = []
    for name, value in zip(names, args):
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            if name in lower:
                value = value.to(target)
            elif name in keep:
                value = value.float()
        found.append(value)
    return tuple(found)


def in_forward_mode() -> bool:
    """Returns whether forward-mode derivatives are being taken, eagerly: a kernel would lose
    them."""
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def learnt(args: Iterable[Any]) -> bool:
    """Returns whether a call needs gradients.

    Args:
        args: of the call; what is no tensor is ignored.
    """
    if not torch.is_grad_enabled():
        return False
    return any(isinstance(one, Tensor) and one.requires_grad for one in args)


def seen_by(args: Iterable[Any], but_autograd: bool = False) -> str | None:
    """Returns who has to see a call, so that a kernel may not be called past torch's dispatcher, or
    None: plain CPU tensors, and no autograd, autocast, compiler, tracer, transform or mode.

    Args:
        args: of the call; what is no tensor is ignored.
        but_autograd: whether autograd does not count.
    """
    if torch.compiler.is_compiling() or in_transform() or torch._C._len_torch_dispatch_stack() > 0:
        return "a compiler or transform has to see the call"
    if torch._C._is_tracing():  # it would take the result for a constant
        return "torch.jit.trace has to see the call"
    if in_forward_mode():
        return "forward-mode differentiation has to see the call"
    if torch.is_autocast_enabled("cpu"):
        return "autocast has to see the call"
    grads = torch.is_grad_enabled() and not but_autograd
    for one in args:
        if not isinstance(one, Tensor):
            continue
        # Another subclass, such as a fake tensor, has no memory of its own to point at.
        if type(one) not in _PLAIN or not one.is_cpu or one.is_neg():
            return (
                f"it runs on plain CPU tensors, and one is a {type(one).__name__} on {one.device}"
            )
        if several(one):
            return "autograd takes several gradients at once"
        if grads and one.requires_grad:
            return "autograd has to see the call"
    return None


def _refuse_tangents(name: str, args: Iterable[Any]) -> None:
    for value in args:
        dual = isinstance(value, Tensor) and torch.autograd.forward_ad.unpack_dual(value)
        if dual and dual.tangent is not None:
            raise RuntimeError(f"{name} has no forward-mode derivative (jvp)")


def gradients_of(
    function: Impl, given: Sequence[Tensor | None], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Returns the gradients of a function by computing it again, in operations that have
    derivatives themselves.

    Args:
        function: of as many arguments as are given, returning a tensor or several.
        given: its arguments; None for an absent one, which has no gradient.
        cotangents: the gradients of its results; None for zeros.
    """
    there = [value for value in given if value is not None]

    def again(*values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        results = function(*[None if value is None else next(rest) for value in given])
        return (results,) if isinstance(results, Tensor) else tuple(results)

    results, pull, *_ = torch.func.vjp(again, *there)
    pairs = zip(results, cotangents)
    found = iter(pull(tuple(torch.zeros_like(y) if d is None else d.to(y.dtype) for y, d in pairs)))
    return [None if value is None else next(found) for value in given]


def _recomputed(name: str, composed: Impl | None, packed: Impl) -> tuple[Impl, Impl]:
    """Returns the rules of autograd for an operator whose gradients are those of ``composed``."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if composed is None:
            return
        ctx.places = [i for i, one in enumerate(inputs) if isinstance(one, Tensor)]
        ctx.plain = [None if isinstance(one, Tensor) else one for one in inputs]
        ctx.save_for_backward(*[inputs[i] for i in ctx.places])

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if composed is None:
            raise RuntimeError(f"{name} has no derivative: second derivatives are not supported")
        grads = tuple(grads[0]) if isinstance(grads[0], (list, tuple)) else grads
        args, saved = list(ctx.plain), dict(zip(ctx.places, ctx.saved_tensors))
        wanted = [i for i in ctx.places if ctx.needs_input_grad[i]]
        for i, value in saved.items():
            args[i] = value

        def again(*values: Tensor) -> Any:
            filled = list(args)
            for i, value in zip(wanted, values):
                filled[i] = value
            return composed(*packed(tuple(filled)))

        found = dict(zip(wanted, gradients_of(again, [args[i] for i in wanted], grads)))
        return tuple(found.get(i) for i in range(len(args)))

    return setup_context, backward


def _register_autocast(
    op: Any, names: list[str], lower: frozenset[str], keep: frozenset[str]
) -> None:
    overload = op._opoverload

    def rule(device: str) -> Callable[..., Any]:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

        def kernel(*args: Any) -> Any:
            target = torch.get_autocast_dtype(device.lower())
            cast = _autocast(names, args, lower, keep, target)
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return overload(*cast)

        return kernel

    for device in ("CPU", "CUDA"):
        op._lib.impl(op._name, rule(device), f"Autocast{device}")


def in_transform() -> bool:
    """Returns whether the call is inside a torch.func transform (grad, vmap, ...) that is run
    eagerly."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def _transformable(op: Any, vmap: Impl, setup: Impl, backward: Impl) -> Callable[..., Any]:
    """Returns a function that calls a custom operator, also inside torch.func transforms.

    The autograd rule of a ``custom_op`` does not work under torch.func.grad (torch 2.15), that of
    an ``autograd.Function`` with ``setup_context`` does; torch.export and torch.compile want the
    operator.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            out = op(*args)
            return tuple(out) if isinstance(out, list) else out

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    Function.vmap = staticmethod(vmap)  # type: ignore[method-assign]
    op.register_vmap(vmap)

    def call(*args: Any) -> Any:
        return Function.apply(*args) if in_transform() else op(*args)

    return call


def _vmap_loop(call: Any, info: Any, in_dims: Sequence[int | None], args: Sequence[Any]) -> Any:
    """Runs an operator once per vmapped sample and stacks its output, or each of them, along
    dimension 0."""
    runs = [
        call(*[v if d is None else v.select(d, i) for v, d in zip(args, in_dims)])
        for i in range(info.batch_size)
    ]
    if isinstance(runs[0], Tensor):
        return torch.stack(runs)
    return tuple(torch.stack(column) for column in zip(*runs))


def _vmap_fold(
    call: Any, batched: Sequence[int], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> Any:
    """Folds vmap into the batch where only per-row arguments are vmapped; loops over the samples
    otherwise.

    Args:
        call: the operator; the first dimension of its outputs is the batch, or they are empty.
        batched: indices of arguments whose first dimension is the batch.
        info: vmap's, with ``batch_size``.
        in_dims: vmap's, one per argument.
        args: the arguments.

    Returns:
        The operator's output, or a tuple of them, the vmapped samples along dimension 0.
    """
    size = info.batch_size
    if any(in_dims[i] is not None for i in range(len(args)) if i not in batched):
        return _vmap_loop(call, info, in_dims, args)

    def fold(value: Any, dim: int | None) -> Any:
        if value is None:
            return None
        value = (
            value.unsqueeze(0).expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        )
        return value.flatten(0, 1)

    def unfold(value: Tensor) -> Tensor:
        if value.dim() == 1:  # an absent output
            return value.expand(size, *value.shape)
        return value.view(size, value.shape[0] // size, *value.shape[1:])

    out = call(*[fold(v, in_dims[i]) if i in batched else v for i, v in enumerate(args)])
    return unfold(out) if isinstance(out, Tensor) else tuple(unfold(t) for t in out)
