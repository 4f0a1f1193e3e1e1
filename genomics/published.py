"""``longseq genomics import``: published HyenaDNA, Caduceus and DNA-xLSTM as files of ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from longseq.core.checkpoints.layouts import LAYOUTS, Tensors, read_state_dict
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import check_writable, require_file
from longseq.core.training.task import BaseTask
from longseq.genomics.data.tokenizer import PADDED_VOCAB_SIZE, VOCAB_SIZE

WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "weights.ckpt",
    "checkpoints/test/loss.ckpt",
    "checkpoints/last.ckpt",
)
SETTINGS = ("config.json", "model_config.json")
CARDS = ("README.md", "MODEL_CARD.md")
_LAYER = "backbone.layers.0."


def read_published(source: str | Path) -> BaseTask:
    """Returns the task that a published checkpoint holds, in evaluation mode.

    Sizes are read from the weights' shapes; a ``config.json`` beside them is checked for what they
    cannot say. Nothing that the files name is executed.

    Args:
        source: a folder of transformers or the file of weights: HyenaDNA under its names on the
            Hub or those of its authors (with or without activation checkpointing), Caduceus
            (plain, Ph, PS), or DNA-xLSTM, which needs its ``model_config.json``.

    Raises:
        DataError: if the weights are of no such model, incomplete, or have settings that ours does
            not.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not found:
            raise DataError(f"holds none of {', '.join(WEIGHTS)}", path=path)
        path = found[0]
    require_file(path, "file of weights")
    config = _settings(path)
    state = read_state_dict(path)
    if any("mamba_fwd" in key for key in state):
        task = _caduceus(state, config, path)
        layout = "caduceus"
    elif any("filter_fn" in key for key in state):
        task = _hyenadna(state, config, path)
        layout = "hyenadna"
    elif any("xlstm_block_stack" in key for key in state):
        from longseq.genomics.published_xlstm import dna_xlstm

        ours, layers = _shapes(state, "xlstm", path)
        task, layout = dna_xlstm(ours, layers, config, path), "xlstm"
    else:
        raise DataError(
            "holds neither HyenaDNA nor Caduceus nor DNA-xLSTM",
            path=path,
            hint="LanguageModel.from_pretrained reads other families",
        )
    ours = LAYOUTS[layout].from_published(state)
    check_state_dict(task.model, ours, path)  # type: ignore[arg-type]
    task.model.load_state_dict(ours, strict=True)  # type: ignore[union-attr, operator]
    task.facts = {"imported": _origin(path, layout), **task.facts}
    return task.eval()


def _settings(path: Path) -> dict[str, Any]:
    """Returns what stands beside weights, or up to two folders above them; {} for nothing."""
    for folder in [path.parent, *path.parent.parents][:3]:
        for name in SETTINGS:
            if (folder / name).is_file():
                try:
                    found = json.loads((folder / name).read_text(encoding="utf-8"))
                except ValueError as error:
                    raise DataError(f"is no JSON: {error}", path=folder / name) from error
                if not isinstance(found, dict):
                    raise DataError("holds no settings", path=folder / name)
                inner = found.get("config")
                return inner if isinstance(inner, dict) else found
        if folder == path.parent and path.name != "loss.ckpt" and path.parent.name != "checkpoints":
            break
    return {}


def _origin(path: Path, layout: str) -> dict[str, str]:
    """Returns where a model is from: file, checksum, licence and card of its folder."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    card = next((path.parent / name for name in CARDS if (path.parent / name).is_file()), None)
    text = card.read_text(encoding="utf-8", errors="replace") if card else ""
    named = re.search(r"(?mi)^license:\s*(\S+)", text)
    licence_file = next(iter(sorted(path.parent.glob("LICENSE*"))), None)
    licence = named[1] if named else (licence_file.name if licence_file else "not stated")
    return {
        "layout": layout,
        "file": path.name,
        "sha256": checksum,
        "license": licence,
        "card": text,
    }


def _need(config: Mapping[str, Any], name: str, *values: Any, path: Path) -> None:
    if name in config and config[name] not in values:
        raise DataError(f"{name} {config[name]!r} is not what ours has ({values[0]!r})", path=path)


def _shapes(state: Tensors, layout: str, path: Path) -> tuple[dict[str, Any], int]:
    """Returns our names with their values, and the number of layers."""
    ours = LAYOUTS[layout].from_published(state)
    numbers = {int(m[1]) for key in ours if (m := re.match(r"backbone\.layers\.(\d+)\.", key))}
    if not numbers or "embedding.weight" not in ours:
        raise DataError(f"is no whole {layout}: it has no embedding or no layers", path=path)
    known = (VOCAB_SIZE, PADDED_VOCAB_SIZE) if layout == "xlstm" else (PADDED_VOCAB_SIZE,)
    if (tokens := ours["embedding.weight"].shape[0]) not in known:
        raise DataError(
            f"has {tokens} tokens, the DNA tokenizer has {' or '.join(map(str, known))}", path=path
        )
    return ours, max(numbers) + 1


def _entry(ours: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if _LAYER + name not in ours:
        raise DataError(f"is incomplete: {_LAYER}{name} is missing", path=path)
    return ours[_LAYER + name]


def _hyenadna(state: Tensors, config: Mapping[str, Any], path: Path) -> BaseTask:
    from longseq.genomics.task import CausalLanguageModel

    ours, layers = _shapes(state, "hyenadna", path)
    _need(config, "use_bias", True, path=path)
    _need(config, "hyena_order", 2, path=path)
    _need(config, "layer_norm_epsilon", 1e-5, path=path)
    width = ours["embedding.weight"].shape[1]
    table = _entry(ours, "mixer.filter_fn.pos_emb.z", path)
    linear = re.escape(f"{_LAYER}mixer.filter_fn.implicit_filter.") + r"\d+\.weight"
    inner = [key for key in ours if re.fullmatch(linear, key)]
    kwargs = {
        "l_max": table.shape[1],
        "emb_dim": table.shape[2],
        "filter_order": _entry(ours, "mixer.filter_fn.implicit_filter.0.weight", path).shape[0],
        "short_filter_order": _entry(ours, "mixer.short_filter.weight", path).shape[2],
        "num_inner_mlps": len(inner) - 2,
    }
    hidden = _entry(ours, "mlp.fc1.weight", path).shape[0]
    if hidden % width:
        raise DataError(f"MLPs of width {hidden} are no multiple of {width}", path=path)
    head = ours["lm_head.weight"]
    tied = head.shape == ours["embedding.weight"].shape and bool(
        (head == ours["embedding.weight"]).all()
    )
    task = CausalLanguageModel(
        width,
        layers,
        "hyena",
        kwargs,
        mlp_ratio=hidden / width,
        norm="layer",
        tie_embeddings=tied,
    )
    task.facts = {"length": kwargs["l_max"]}
    return task


def _caduceus(state: Tensors, config: Mapping[str, Any], path: Path) -> BaseTask:
    from longseq.genomics.masked_task import MaskedLanguageModel

    ours, layers = _shapes(state, "caduceus", path)
    _need(config, "norm_epsilon", 1e-5, path=path)
    _need(config, "bidirectional", True, path=path)
    _need(config, "bidirectional_strategy", "add", "ew_multiply", None, path=path)
    rcps = any(".mixer.submodule." in key for key in state)
    _need(config, "rcps", rcps, path=path)
    fused = not any(".norm.submodule." in key for key in state)
    width = ours["embedding.weight"].shape[1]
    inner, d_state = _entry(ours, "mixer.fwd.A_log", path).shape
    sides = (
        (name, *(_entry(ours, f"mixer.{side}.{name}.weight", path) for side in ("fwd", "rev")))
        for name in ("in_proj", "out_proj")
    )
    tied = [name for name, ahead, back in sides if bool((ahead == back).all())]
    mamba = {
        "d_state": d_state,
        "d_conv": _entry(ours, "mixer.fwd.conv1d.weight", path).shape[2],
        "expand": inner // width,
        "dt_rank": _entry(ours, "mixer.fwd.dt_proj.weight", path).shape[1],
    }
    product = config.get("bidirectional_strategy") == "ew_multiply"
    kwargs = {
        "mixer": "mamba",
        "mixer_kwargs": mamba,
        "combine": "product" if product else "sum",
        "tied": tied,
    }
    return MaskedLanguageModel(
        width,
        layers,
        "bidirectional",
        kwargs,
        norm="layer" if "backbone.norm_f.bias" in ours else "rms",
        symmetry=("ps_swapped" if fused else "ps") if rcps else "none",
    )


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics import``."""
    from longseq.genomics.scorers import export

    parser = CommandParser(
        prog="longseq genomics import",
        description="Reads a published HyenaDNA, Caduceus or DNA-xLSTM and writes it as a file of "
        "ours, with its card and licence. Nothing is executed, nothing is downloaded.",
    )
    parser.add_argument("source", help="folder with the weights, or their file")
    parser.add_argument("--out", required=True, help=".safetensors file to write")
    args = parser.parse_args(argv)
    if Path(args.out).suffix != ".safetensors":
        raise ConfigError(f"--out must end in .safetensors, got {args.out}")
    check_writable(args.out)
    task = read_published(args.source)
    export(task, args.out)
    origin = task.facts["imported"]
    count = sum(p.numel() for p in task.parameters())
    print(f"{args.out}: {type(task).__name__} of {count:,} parameters, licence {origin['license']}")
    return 0
