"""Layers that are added to a trained zero-shot network, and change nothing at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError
from longseq.core.mixers.slstm import SLSTM
from longseq.timeseries.data.pretraining import make_batch
from longseq.timeseries.models.zero_shot import ZeroShot

_NORM = "backbone.norm_f.weight"
# Batches of generated series that say how large embedded patches are, and their seed.
_BATCHES, _SEED, _SERIES = 4, 7, 64


@torch.no_grad()
def silence(network: ZeroShot, added: int) -> None:
    """Makes the last layers of a network add nothing: the gains of their norm over heads and their
    MLP's last map are 0, both of which have gradients.

    Args:
        network: of sLSTM layers.
        added: number of its last layers.

    Raises:
        ConfigError: if it has not so many, or others.
    """
    layers = list(network.backbone.layers) if network.backbone is not None else []
    if not 0 <= added <= len(layers):
        raise ConfigError(f"added_layers = {added} of n_layers = {len(layers)}")
    for layer in layers[len(layers) - added :]:
        if not isinstance(layer.mixer, SLSTM) or layer.mlp is None:
            raise ConfigError(
                "added_layers are sLSTM layers with an MLP (mixer slstm, mlp_ratio above 0)"
            )
        layer.mixer.group_norm.weight.fill_(-1.0)  # stored as the difference from 1
        for last in layer.mlp.fc2.parameters():
            last.zero_()


def adopt(state: Mapping[str, Any], module: nn.Module, added: int) -> dict[str, Any]:
    """Returns weights of a network without its added layers as such of the network with them.

    Args:
        state: weights of a module, of every ``ZeroShot`` in it.
        module: the module that is to take them, its added layers silenced.
        added: number of every network's last layers that may be missing.
    """
    whole = dict(state)
    if added == 0:
        return whole
    own = module.state_dict()
    for path, network in module.named_modules():
        if not isinstance(network, ZeroShot) or network.backbone is None:
            continue
        prefix, count = f"{path}." if path else "", len(network.backbone.layers)
        names = [f"{prefix}backbone.layers.{i}." for i in range(count - added, count)]
        new = [key for key in own if key.startswith(tuple(names))]
        if any(key in whole for key in new):
            continue  # they are there, or some are missing, which is not for us to mend
        whole |= {key: own[key] for key in new}
        if added == count and prefix + _NORM not in whole:
            embed = {key: whole[f"{prefix}embed.{key}"] for key in network.embed.state_dict()}
            whole[prefix + _NORM] = _norm_gains(network, embed)
    return whole


@torch.no_grad()
def _norm_gains(network: ZeroShot, embed: Mapping[str, Tensor]) -> Tensor:
    """Returns the gains (D,) of the last norm that give embedded patches back by least squares,
    where there was no norm before."""
    probe = ZeroShot(network.embed.out_features, 0, patch=network.patch)
    probe.embed.load_state_dict(dict(embed))
    found: list[Tensor] = []
    probe.embed.register_forward_hook(lambda _, __, z: found.append(z.flatten(0, -2)))
    for step in range(_BATCHES):
        batch = make_batch(_SEED, step, _SERIES)
        x, ends = batch["x"][:, : batch["cutoffs"][-1]], batch["cutoffs"]
        probe(torch.nan_to_num(x), ~x.isnan(), batch["hint"], ends)
    z = torch.cat(found)
    normed = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-5)
    return (z * normed).mean(0) / normed.square().mean(0)
