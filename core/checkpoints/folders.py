"""Folders of published models: ``config.json``, weights in one file or in shards, read and written
whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.checkpoints.families import FAMILIES, REFUSED, Family, Published
from longseq.core.checkpoints.layouts import Layout, read_state_dict, with_head
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.checkpoints.same import require_same
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import atomic_path, check_writable, require_file
from longseq.core.mixers import Mixer

OWN_TYPE = "longseq"
"""``model_type`` of a model that is not of a published family."""
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
"""Ending of the file that says which shard holds which tensor."""
_OWN_LAYOUT = Layout(rules=())


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        DataError: if it is missing or holds anything else.
    """
    file = require_file(path, "file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", path=file) from error
    if not isinstance(content, dict):
        raise DataError("holds no JSON object", path=file)
    return content


def read_config(folder: str | Path) -> dict[str, Any]:
    """Returns the configuration of a published model.

    Args:
        folder: of the model.

    Raises:
        DataError: if there is no such folder or no readable ``config.json``.
    """
    if not Path(folder).is_dir():
        raise DataError(
            "is not a folder",
            path=folder,
            hint="download the model first, and give the folder that holds its config.json",
        )
    return read_json(Path(folder) / CONFIG)


def model_type(config: Mapping[str, Any]) -> str | None:
    """Returns the family's name; mamba-ssm's own folders do not say it."""
    name = config.get("model_type")
    if name is None and "d_model" in config and "ssm_cfg" in config:
        return "mamba_ssm"
    return None if name is None else str(name)


def find_family(folder: str | Path, config: Mapping[str, Any]) -> Family:
    """Returns the family of a configuration.

    Raises:
        DataError: if it is none of ours, naming it.
    """
    name = model_type(config)
    file = Path(folder) / CONFIG
    if name in REFUSED:
        raise DataError(f"model_type {name!r} cannot be computed here: {REFUSED[name]}", path=file)
    if name not in FAMILIES:
        near = did_you_mean(str(name), FAMILIES)
        raise DataError(f"model_type {name!r} is no family of ours; {near}", path=file)
    return FAMILIES[name]


def read_family(
    folder: str | Path, config: Mapping[str, Any], ignore: Iterable[str] = ()
) -> tuple[dict[str, Any], Layout]:
    """Returns the arguments of ``LanguageModel`` and the published names.

    Args:
        folder: of the model, for messages.
        config: its configuration.
        ignore: settings that may be there unread.

    Raises:
        DataError: for an unknown family or a setting that would not be honoured.
    """
    if model_type(config) == OWN_TYPE:
        settings = config.get("settings")
        if not isinstance(settings, dict):
            raise DataError("has no settings", path=Path(folder) / CONFIG)
        return settings, _OWN_LAYOUT
    family = find_family(folder, config)
    published = Published(config, Path(folder) / CONFIG, ignore)
    try:
        settings = family.read(published)
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot be understood: {error}", path=published.path) from error
    published.done()
    return settings, family.layout(settings)


def find_dtype(dtype: torch.dtype | str, config: Mapping[str, Any]) -> torch.dtype:
    """Returns the dtype of the parameters.

    Args:
        dtype: one, its name, or "auto" for what the configuration says (float32 if nothing).
        config: of the model.

    Raises:
        ConfigError: if there is no such floating-point dtype.
    """
    if dtype == "auto":
        dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ConfigError(f"dtype {dtype!r} is none of float32, bfloat16, float16, float64")
    return found


def stop_tokens(folder: str | Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids that end a text: of ``generation_config.json`` if it is there, else of the
    configuration."""
    file = Path(folder) / "generation_config.json"
    own = read_json(file) if file.is_file() else {}
    ids = own.get("eos_token_id", config.get("eos_token_id"))
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
        where = file if "eos_token_id" in own else Path(folder) / CONFIG
        raise DataError(f"eos_token_id must be token ids, got {ids!r}", path=where)
    return tuple(ids)


def weight_files(folder: str | Path) -> list[Path]:
    """Returns the files that hold a model's weights, safetensors before pickles.

    Raises:
        DataError: if there is none, or an index names a file that is missing or elsewhere.
    """
    folder = Path(folder)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            return [require_file(folder / shard, "shard") for shard in read_index(index)]
    raise DataError(
        "holds no weights",
        path=folder,
        hint=f"it needs {' or '.join(WEIGHTS)}, or shards beside an .index.json",
    )


def read_index(path: str | Path) -> list[str]:
    """Returns the names of the shards that an index lists.

    Raises:
        DataError: if it lists none, or one elsewhere.
    """
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DataError("has no weight_map", path=path)
    shards = sorted({str(shard) for shard in places.values()})
    for shard in shards:
        if Path(shard).name != shard or shard in (".", ".."):
            raise DataError(f"names a file outside its folder: {shard!r}", path=path)
    return shards


def check_sizes(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Checks that a folder's weights can fill what its configuration describes, before that is
    built: an embedding of so many tokens, and a norm in every layer.

    Args:
        folder: of the model.
        settings: arguments of ``LanguageModel``.

    Raises:
        DataError: naming the number that is too large, or for a folder without weights.
    """
    stored = sum(file.stat().st_size for file in weight_files(folder))
    width = settings.get("d_model", 1)
    for name in ("d_model", "vocab_size", "n_layers"):
        value = settings.get(name, 1)
        if type(value) is not int or type(width) is not int:
            continue  # the model refuses it
        if 2 * value * (1 if name == "d_model" else width) > stored:  # bytes of a parameter: 2
            raise DataError(
                f"{name} {value} needs more parameters than the {stored} bytes of its weights hold",
                path=Path(folder) / CONFIG,
            )


def load_folder(folder: str | Path, model: nn.Module, layout: Layout, dtype: torch.dtype) -> None:
    """Loads the weights of a folder into a model, all keys and shapes checked.

    Args:
        folder: of the model.
        model: takes the weights in place.
        layout: the published names.
        dtype: of the parameters; those of state spaces stay at least float32.

    Raises:
        DataError: if a file is unusable or of another model.
    """
    published: dict[str, Tensor] = {}
    for file in weight_files(folder):
        published.update(read_state_dict(file))
    for name, tensor in published.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise DataError(
                f"{name} is {tensor.dtype}: weights are float16, bfloat16, float32 or float64",
                path=folder,
            )
    state = layout.from_published(with_head(published, layout))
    del published
    tied = _tied(model)
    if tied and "embedding.weight" in state:
        # Hugging Face keeps the shared tensor once; a second copy must be the same.
        head = state.setdefault("lm_head.weight", state["embedding.weight"])
        if not torch.equal(head, state["embedding.weight"]):
            raise DataError(
                "tie_word_embeddings is set, and the head differs from the embedding",
                path=Path(folder) / CONFIG,
            )
    cast(model, dtype)
    check_state_dict(model, state, folder)
    model.load_state_dict(state, strict=True)


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Turns a model's parameters into a dtype, those of state spaces into float32 at least."""
    kept = torch.promote_types(dtype, torch.float32)
    wide = {
        parameter
        for mixer in model.modules()
        if isinstance(mixer, Mixer)
        for name, parameter in mixer.named_parameters()
        if name in mixer.ssm_parameters
    }
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(kept if tensor in wide else dtype)


def _tied(model: nn.Module) -> bool:
    own = dict(model.named_parameters(remove_duplicate=False))
    return own["lm_head.weight"] is own["embedding.weight"]


def save_folder(
    folder: str | Path,
    model: nn.Module,
    settings: Mapping[str, Any],
    published: Mapping[str, Any] | None,
    family: str | None,
    max_shard_size: int,
    stops: Iterable[int] = (),
) -> None:
    """Writes ``config.json`` and the weights; see ``LanguageModel.save_pretrained``.

    Args:
        folder: is made if it is not there.
        model: whose weights are written.
        settings: its arguments.
        published: the configuration that it was read from, if any.
        family: ``model_type`` to write; None for the one it came from, or our own.
        max_shard_size: bytes in a file.
        stops: ids that end a text; written where the configuration does not say them.

    Raises:
        ConfigError: if the family cannot hold the model, or for shards of less than a byte.
        DataError: if the folder cannot be made, as where there is a file in its place, or a file
            in it cannot be written.
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise DataError("is not a folder", path=folder)
    check_positive("max_shard_size", max_shard_size)
    tied = _tied(model)  # its maker may have given the head weights of its own since
    config, layout = _config({**settings, "tie_embeddings": tied}, published, family)
    dtype = str(model.get_parameter("embedding.weight").dtype).removeprefix("torch.")
    if "dtype" in config or "torch_dtype" not in config:
        config["dtype"] = dtype
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    state = dict(model.state_dict())
    if tied:
        del state["lm_head.weight"]
    tensors = layout.to_published(state)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be made: {error.strerror}", path=folder) from error
    # Before the first is replaced: weights beside another model's configuration are of no use.
    for name in (CONFIG, *WEIGHTS[:1], f"{WEIGHTS[0]}{INDEX}", "generation_config.json"):
        check_writable(Path(folder) / name)
    _write_shards(Path(folder), tensors, max_shard_size)
    _write_json(Path(folder) / CONFIG, config)
    generation = Path(folder) / "generation_config.json"
    if tuple(stops) != stop_tokens(folder, config) or generation.is_file():
        own = read_json(generation) if generation.is_file() else {}
        _write_json(generation, own | {"eos_token_id": list(stops) or None})


def _config(
    settings: Mapping[str, Any], published: Mapping[str, Any] | None, name: str | None
) -> tuple[dict[str, Any], Layout]:
    """Returns the configuration to write and the names."""
    if published is not None and name in (None, model_type(published)):
        kind = FAMILIES[str(model_type(published))]
        config = dict(published)
        if kind.read(Published(config))["tie_embeddings"] != settings["tie_embeddings"]:
            key = "tie_embeddings" if kind.model_type == "mamba_ssm" else "tie_word_embeddings"
            config[key] = settings["tie_embeddings"]
        return config, kind.layout(settings)
    if name in (None, OWN_TYPE):
        return {"model_type": OWN_TYPE, "settings": dict(settings)}, _OWN_LAYOUT
    kind_or_none = FAMILIES.get(str(name))
    if kind_or_none is None or kind_or_none.write is None:
        known = [one.model_type for one in FAMILIES.values() if one.write is not None]
        raise ConfigError(f"no family {name!r} to write; {did_you_mean(str(name), known)}")
    kind = kind_or_none
    assert kind.write is not None
    config = {
        "model_type": kind.model_type,
        "architectures": [kind.architecture],
        **kind.write(settings),
    }
    read = kind.read(Published(config))
    require_same(settings, read, kind.model_type)
    return config, kind.layout(settings)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> None:
    """Writes safetensors: one file, or several and an index."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().clone().contiguous()
        if shards[-1] and size + value.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = WEIGHTS[0] if len(shards) == 1 else file
        try:
            with atomic_path(folder / file) as temporary:
                save_file(shard, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # its word for an OSError, as of a full disk
            raise DataError(f"cannot be written: {error}", path=folder / file) from error
        places |= dict.fromkeys(shard, file)
    index = folder / f"{WEIGHTS[0]}{INDEX}"
    if len(shards) == 1:
        index.unlink(missing_ok=True)
        return
    (folder / WEIGHTS[0]).unlink(missing_ok=True)
    total = sum(value.nbytes for shard in shards for value in shard.values())
    _write_json(index, {"metadata": {"total_size": total}, "weight_map": places})
