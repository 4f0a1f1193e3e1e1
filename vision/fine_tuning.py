"""Fine-tuning by depth: which parameters lie how deep, freezing them, and smaller rates below."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from longseq.core.errors import ConfigError
from longseq.vision.models.layers import ImageModel

BLOCK = re.compile(r"(?:^|\.)(?:layers|stages|levels|blocks)\.(\d+)(?:\.(\d+)\.)?")


def parameter_depths(model: ImageModel) -> dict[str, int]:
    """Returns the depth of every parameter by name: 0 for stem and positions, then one for each
    block in order, and the head last, with the norms before it.

    Args:
        model: any image model.
    """
    top = (model.head_key, *model.head_norms)
    places: dict[str, tuple[int, ...] | None] = {}
    for name, _ in model.named_parameters():
        if any(name.startswith(f"{one}.") for one in top):
            places[name] = None
            continue
        numbers = [int(n) for pair in BLOCK.findall(name) for n in pair if n]
        # What follows a stage's blocks, such as its halving, is deeper than they are.
        places[name] = tuple(numbers) if len(numbers) != 1 else (numbers[0], 10**6)
    order = sorted({place for place in places.values() if place})
    number = {place: i + 1 for i, place in enumerate(order)}
    return {
        name: len(order) + 1 if place is None else number.get(place, 0)
        for name, place in places.items()
    }


def freeze(model: ImageModel, parts: int) -> None:
    """Takes the lowest parts of a model out of training.

    Args:
        model: changed.
        parts: how many depths of ``parameter_depths``, the stem first; -1 for all but the head.

    Raises:
        ConfigError: if the model has no so many parts below its head.
    """
    depths = parameter_depths(model)
    below = max(depths.values())
    if not -1 <= parts <= below:
        raise ConfigError(f"freeze must lie between -1 (all but the head) and {below}, got {parts}")
    limit = below if parts == -1 else parts
    for name, parameter in model.named_parameters():
        if depths[name] < limit:
            parameter.requires_grad_(False)


def still_norms(model: nn.Module) -> None:
    """Lets the batch norms of frozen parts keep the moments that they have.

    Args:
        model: in training mode.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.eval()


def decay_rates(optimizer: Optimizer, model: ImageModel, decay: float) -> None:
    """Divides an optimiser's groups by depth; the rate of depth d of n is multiplied by decayⁿ⁻ᵈ
    (Clark et al. 2020, arXiv 2003.10555; Bao et al. 2021, arXiv 2106.08254).

    Args:
        optimizer: that has made no step; changed.
        model: whose parameters it trains.
        decay: in (0, 1].
    """
    depths = parameter_depths(model)
    found = {id(parameter): depths[name] for name, parameter in model.named_parameters()}
    most, groups = max(depths.values()), []
    for group in optimizer.param_groups:
        of_depth: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            of_depth.setdefault(found.get(id(parameter), most), []).append(parameter)
        for depth, parameters in sorted(of_depth.items()):
            rate = group["lr"] * decay ** (most - depth)
            groups.append({**group, "params": parameters, "lr": rate})
    optimizer.param_groups[:] = groups
