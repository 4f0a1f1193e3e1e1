"""Published DNA-xLSTM (arXiv 2411.04165): what its weights and its settings say, as a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from longseq.core.errors import DataError
from longseq.core.training.task import BaseTask

NEEDED = ("bidirectional", "s_lstm_at", "rcps")  # no weight tells these
ROTARY_BASE = 500_000.0  # fixed in its code


def dna_xlstm(
    ours: Mapping[str, Tensor], layers: int, config: Mapping[str, Any], path: Path
) -> BaseTask:
    """Returns an untrained task of the shape that a checkpoint has.

    Args:
        ours: its weights under our names.
        layers: their number.
        config: its settings.
        path: of the weights, for errors.

    Raises:
        DataError: if settings are missing, contradict the weights, or are of what ours does not
            have.
    """
    if missing := [name for name in NEEDED if name not in config]:
        raise DataError(
            f"says nothing about {', '.join(missing)}, which no weight tells",
            path=path,
            hint="put the model's model_config.json beside it",
        )
    names = [_mixer(ours, i) for i in range(layers)]
    _check(config, names, layers, ours["embedding.weight"].shape[1], path)
    width, tokens = ours["embedding.weight"].shape[1], ours["embedding.weight"].shape[0]
    kwargs, ratios = {}, {}
    for name in dict.fromkeys(names):
        first = f"backbone.layers.{names.index(name)}."
        kwargs[name] = _slstm(ours, first) if name == "slstm" else _mlstm(ours, first, width)
        if name == "mlstm" and config.get("m_position_embeddings"):
            kwargs[name]["rotary_base"] = ROTARY_BASE
        if f"{first}mlp.fc2.weight" in ours:
            # Half a channel more or less: the quotient alone may be rounded past a whole number.
            ratios[name] = (ours[f"{first}mlp.fc2.weight"].shape[1] + 0.5) / width
    shape: dict[str, Any] = {
        "d_model": width,
        "n_layers": layers,
        "mixer": names,
        "mixer_kwargs": kwargs,
        "mlp_ratio": ratios or 0.0,
        "mlp": "geglu",
        "mlp_kwargs": {"multiple_of": 1} if ratios else None,
        "norm": "layer_nobias",
        "tie_embeddings": False,
        "vocab_size": tokens,
    }
    if config["bidirectional"]:
        from longseq.genomics.masked_task import MaskedLanguageModel

        turns = "alternating" if config.get("bidirectional_alternating") else "blocks"
        symmetry: Any = "ps_heads" if config["rcps"] else "none"
        task: BaseTask = MaskedLanguageModel(**shape, directions=turns, symmetry=symmetry)
    else:
        from longseq.genomics.task import CausalLanguageModel

        task = CausalLanguageModel(**shape)
    if isinstance(config.get("max_length"), int):
        task.facts = {"length": config["max_length"]}
    return task


def _mixer(ours: Mapping[str, Tensor], index: int) -> str:
    found = f"backbone.layers.{index}.mixer.slstm_cell._bias_" in ours
    return "slstm" if found else "mlstm"


def _check(
    config: Mapping[str, Any], names: list[str], layers: int, width: int, path: Path
) -> None:
    """Refuses what ours does not have, and settings of another model."""
    refused = {
        "m_backend_bidirectional": "mLSTM cells that look both ways",
        "s_position_embeddings": "absolute positions",
    }
    if "mlstm" in names and config["rcps"]:
        refused["rcps"] = "an equivariant mLSTM (its own code cannot run it either)"
    if config["rcps"] and not config["bidirectional"]:
        refused["rcps"] = "an equivariant causal model, which would see what it predicts"
    for name, what in refused.items():
        if config.get(name):
            raise DataError(f"{name}: {what}: not what ours has", path=path)
    for kind, name in (("slstm", "s_conv1d_causal"), ("mlstm", "m_conv1d_causal")):
        if kind in names and not config.get(name, True):
            raise DataError(f"{name} false: ours has causal convolutions alone", path=path)
    places = [i for i, name in enumerate(names) if name == "slstm"]
    for name, said, found in (
        ("s_lstm_at", sorted(config["s_lstm_at"]), places),
        ("n_layer", config.get("n_layer", layers), layers),
        ("d_model", config.get("d_model", width), width),
    ):
        if said != found:
            raise DataError(f"its settings say {name} {said}, its weights {found}", path=path)


def _entry(ours: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in ours:
        raise DataError(f"is incomplete: {name} is missing")
    return ours[name]


def _slstm(ours: Mapping[str, Tensor], first: str) -> dict[str, Any]:
    conv = ours.get(f"{first}mixer.conv1d.conv.weight")
    return {
        "n_heads": _entry(ours, f"{first}mixer.slstm_cell._recurrent_kernel_").shape[0],
        "d_conv": 0 if conv is None else conv.shape[2],
    }


def _mlstm(ours: Mapping[str, Tensor], first: str, width: int) -> dict[str, Any]:
    inner = _entry(ours, f"{first}mixer.learnable_skip").shape[0]
    return {
        "n_heads": _entry(ours, f"{first}mixer.mlstm_cell.igate.bias").shape[0],
        "proj_factor": (inner - 0.5) / width,
        "round_up_to": 1,
        "d_conv": _entry(ours, f"{first}mixer.conv1d.conv.weight").shape[2],
        "qkv_block": _entry(ours, f"{first}mixer.q_proj.weight").shape[1],
        "bias": f"{first}mixer.proj_up.bias" in ours,
    }
