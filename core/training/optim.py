"""Optimiser groups: decay, no decay, state-space."""

from __future__ import annotations

from typing import Any

from torch import nn

from longseq.core.errors import ConfigError

FilterAxes = tuple[tuple[int, ...], tuple[int, ...]]


def _listed(module: nn.Module, attribute: str) -> set[int]:
    """Returns the ids of the parameters that modules in ``module`` list by name in an attribute of
    theirs."""
    found: set[int] = set()
    for path, child in module.named_modules():
        names = getattr(child, attribute, ())
        for name in names if isinstance(names, (tuple, list)) else ():
            owner_path, _, leaf = name.rpartition(".")
            try:
                value = getattr(child.get_submodule(owner_path), leaf)
            except AttributeError as error:
                raise ConfigError(
                    f"{type(child).__name__} at {path or 'the root'!r} lists {name!r} in "
                    f"{attribute} "
                    "but has no such parameter"
                ) from error
            if value is not None:
                found.add(id(value))
    return found


def parameter_groups(
    module: nn.Module, lr: float, weight_decay: float, ssm_lr: float | None = None
) -> list[dict[str, Any]]:
    """Splits the trainable parameters into at most three optimiser groups, each parameter in
    exactly one.

    - ``ssm``: what a mixer lists in ``ssm_parameters``: learning rate ``ssm_lr``, no weight decay;
    - ``no_decay``: norms, embeddings, biases, everything with fewer than two dimensions, and what a
      module lists in ``no_decay_parameters`` (learned positions, class tokens);
    - ``decay``: the rest.

    Modules whose parameters do not lie as filters (O, I, …) name the axes of O and of I in
    ``filter_axes``: {name: ((axes of O), (axes of I))}. A group with such parameters has
    "filter_axes" too, by their place in "params", for optimisers that work on matrices (Muon).

    A shared (tied) parameter appears once, and is not decayed if one of its uses says so.

    Args:
        module: the model.
        lr: learning rate.
        weight_decay: of the ``decay`` group.
        ssm_lr: learning rate of the ``ssm`` group; ``lr`` if None.

    Returns:
        Groups for a torch optimiser, each with a ``name``; empty groups are left out.

    Raises:
        ConfigError: if nothing is trainable or a mixer lists a parameter that it does not have.
    """
    ssm = _listed(module, "ssm_parameters")
    parameters: dict[int, nn.Parameter] = {}
    axes: dict[int, FilterAxes] = {}
    undecayed = _listed(module, "no_decay_parameters")
    for child in module.modules():
        for name, given in getattr(child, "filter_axes", {}).items():
            axes[id(getattr(child, name))] = given
        no_decay = (
            isinstance(child, (nn.Embedding, nn.EmbeddingBag)) or "Norm" in type(child).__name__
        )
        for name, parameter in child.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            parameters.setdefault(id(parameter), parameter)
            if no_decay or parameter.ndim < 2 or name.startswith("bias") or name.endswith("bias"):
                undecayed.add(id(parameter))
    if not parameters:
        raise ConfigError("the model has no trainable parameters")
    groups: dict[str, dict[str, Any]] = {
        "decay": {"params": [], "lr": lr, "weight_decay": weight_decay},
        "no_decay": {"params": [], "lr": lr, "weight_decay": 0.0},
        "ssm": {"params": [], "lr": lr if ssm_lr is None else ssm_lr, "weight_decay": 0.0},
    }
    for key, parameter in parameters.items():
        name = "ssm" if key in ssm else "no_decay" if key in undecayed else "decay"
        if key in axes:
            found = groups[name].setdefault("filter_axes", {})
            found[len(groups[name]["params"])] = axes[key]
        groups[name]["params"].append(parameter)
    return [{**group, "name": name} for name, group in groups.items() if group["params"]]
