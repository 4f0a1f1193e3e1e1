"""Whether two sets of settings describe the same language model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from longseq.core.backbone import Backbone, read_pattern
from longseq.core.errors import ConfigError


def require_same(ours: Mapping[str, Any], read: Mapping[str, Any], family: str) -> None:
    """Refuses a model that a family's configuration does not carry: what it would be read as is
    built, one layer of it, and must be the same module for module.

    Args:
        ours: arguments of ``LanguageModel``.
        read: those that the family's configuration would be read as.
        family: its name, for messages.

    Raises:
        ConfigError: naming the first setting that would be another.
    """
    plain = ("embedding_scale", "logit_scale", "logit_soft_cap", "tie_embeddings", "n_layers")
    for name in plain:
        if (name in read and ours[name] != read[name]) or (
            name not in read
            and ours[name]
            not in (
                1,
                None,
            )
        ):
            raise ConfigError(f"{family} has no place for {name} = {ours[name]!r}")
    patterns = [read_pattern(one["mixer"]) for one in (ours, read)]
    if any(entry != patterns[0][0] for entry in patterns[0]):
        raise ConfigError(f"{family} has no place for a pattern of different mixers")
    mine, theirs = (_facts(one) for one in (ours, read))
    for place in sorted(set(mine) | set(theirs)):
        if mine.get(place) != theirs.get(place):
            raise ConfigError(
                f"{family} has no place for {place} = {mine.get(place)!r}: it would be read as "
                f"{theirs.get(place)!r}"
            )


def _facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the shapes and plain attributes of the first layer and the last norm."""
    taken = inspect.signature(Backbone.__init__).parameters
    backbone = Backbone(**{k: v for k, v in settings.items() if k in taken} | {"n_layers": 1})
    facts: dict[str, Any] = {name: tuple(t.shape) for name, t in backbone.state_dict().items()}
    for name, tensor in backbone.named_buffers():
        facts[name] = tensor.tolist()
    for place, module in backbone.named_modules():
        for name, value in vars(module).items():
            hidden = name.startswith("_") or name in ("p", "chunk_size", "backend", "inplace")
            if not hidden and isinstance(value, (int, float, str, tuple)):
                facts[f"{place}.{name}"] = value
    return facts
