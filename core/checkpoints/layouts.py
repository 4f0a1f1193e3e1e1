"""Published language-model layouts: their names and shapes to ours and back, each a short table of
rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from longseq.core.checkpoints.contents import check_records
from longseq.core.checkpoints.inert import read_inert
from longseq.core.checkpoints.safe import check_state_dict, read_weights
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import require_file

Tensors = dict[str, Tensor]


INSIDE = (
    "model_ema",
    "state_dict_ema",
    "model",
    "state_dict",
    "net_E",
    "net",
    "params_ema",
    "params",
    "module",
)
"""Keys under which training checkpoints keep their weights, averaged ones first."""


def read_state_dict(path: str | Path, inside: Sequence[str] = INSIDE) -> Tensors:
    """Reads a file of weights as others publish them: safetensors, or what ``torch.save`` wrote.

    Objects of the publisher's own classes (arguments, configurations) are left out; nothing that
    the file names is run.

    Args:
        path: the file.
        inside: keys under which a training checkpoint keeps its state dict, the first one that is
            there and not empty.

    Returns:
        Name → tensor.

    Raises:
        DataError: if the file is missing, damaged or holds no state dict.
    """
    if Path(path).suffix == ".safetensors":
        return dict(read_weights(path)[0])
    file = require_file(path, "checkpoint")
    check_records(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 (of objects, or of damaged bytes, which may raise anything)
        try:
            content = read_inert(file)
        except Exception as error:  # of damaged bytes unpickling may raise anything
            raise DataError("is no file of weights, or is damaged", path=file) from error
    for key in inside:
        found = content.get(key) if isinstance(content, dict) else None
        if isinstance(found, dict) and found:
            content = found
            break
    if not isinstance(content, dict) or not content:
        raise DataError("holds no state dict", path=file)
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors or any(isinstance(value, dict) for value in content.values()):
        raise DataError(
            f"holds no state dict; it has {', '.join(map(str, list(content)[:4]))}", path=file
        )
    return tensors


@dataclass(frozen=True)
class Layout:
    """How a family of published checkpoints names what ``embedding``, ``backbone`` and ``lm_head``
    hold.

    Args:
        rules: pairs (published, ours) of key beginnings; ``{i}`` stands for a layer's number. The
            first rule that fits a key counts.
        aliases: further pairs, of names that are read and never written; tried first.
        prefixes: what may stand in front of every published key; the first one is written.
        shifted: ends of our keys whose published value is smaller by 1 (norms stored as a
            difference from 1).
        tied: whether the head shares the embedding's weights, and may be absent.
        drop: pattern of published keys that are no weights (masks), left out.
        fused: pairs of an end of our keys and the ends of the published ones of which its value is
            made, one above the other.
        repair: brings shapes that depend on the publisher's backend into ours.
    """

    rules: Sequence[tuple[str, str]]
    aliases: Sequence[tuple[str, str]] = ()
    prefixes: Sequence[str] = ("",)
    shifted: tuple[str, ...] = ()
    tied: bool = False
    drop: str = r"(?!)"
    fused: Sequence[tuple[str, Sequence[str]]] = ()
    repair: Callable[[Tensors], Tensors] = dict

    def from_published(self, state: Mapping[str, Tensor]) -> Tensors:
        """Returns a published state dict under our names; keys that no rule knows keep theirs.

        Args:
            state: as read from a file.
        """
        found: Tensors = {}
        for key, value in state.items():
            prefix = max((p for p in self.prefixes if key.startswith(p)), key=len, default="")
            name = key[len(prefix) :]
            if re.search(self.drop, name):
                continue
            ours = _rename(name, [*self.aliases, *self.rules])
            found[ours] = value + 1 if ours.endswith(self.shifted) and self.shifted else value
        for ours, parts in self.fused:
            for key in [key for key in found if key.endswith(parts[0])]:
                names = [key.removesuffix(parts[0]) + part for part in parts]
                if all(name in found for name in names):
                    value = torch.cat([found.pop(name) for name in names])
                    found[key.removesuffix(parts[0]) + ours] = value
        if self.tied and "embedding.weight" in found:
            found.setdefault("lm_head.weight", found["embedding.weight"])
        return self.repair(found)

    def to_published(self, state: Mapping[str, Tensor]) -> Tensors:
        """Returns our state dict under the published names.

        Args:
            state: of a model with ``embedding``, ``backbone`` and ``lm_head``.
        """
        swapped = [(mine, theirs) for theirs, mine in self.rules]
        written: Tensors = {}
        for key, value in state.items():
            if self.shifted and key.endswith(self.shifted):
                value = value - 1
            ends = next((e for e in self.fused if key.endswith(e[0])), (key, [key]))
            for end, part in zip(ends[1], value.chunk(len(ends[1]))):
                name = key.removesuffix(ends[0]) + end
                written[self.prefixes[0] + _rename(name, swapped)] = part
        return written


def _rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    """Applies the first rule whose left side begins the key."""
    for old, new in rules:
        pattern = re.escape(old).replace(re.escape("{i}"), r"(\d+)")
        match = re.match(pattern, key)
        if match:
            head = new.replace("{i}", match.group(1)) if match.groups() else new
            return head + key[match.end() :]
    return key


def _slstm_kernels(state: Tensors) -> Tensors:
    """Turns recurrent weights of the published CUDA backend, head-major (H, P, 4P), into ours (H,
    4P, P)."""
    for key, kernel in list(state.items()):
        if key.endswith("slstm_cell._recurrent_kernel_") and kernel.shape[2] == 4 * kernel.shape[1]:
            heads, width, _ = kernel.shape
            state[key] = kernel.transpose(1, 2).contiguous()
            bias = key.replace("_recurrent_kernel_", "_bias_")
            state[bias] = state[bias].view(heads, 4, width).transpose(0, 1).flatten()
    return state


def _shared_frequencies(state: Tensors) -> Tensors:
    """Fills in the sines' frequencies, one tensor for all layers of a filter, which files hold
    once."""
    for key in [key for key in state if re.search(r"implicit_filter\.\d+\.weight$", key)]:
        head, number, _ = key.rsplit(".", 2)
        first, own = f"{head}.1.freq", f"{head}.{int(number) - 1}.freq"
        if int(number) > 1 and first in state:
            state.setdefault(own, state[first])
    return state


def _tied_directions(state: Tensors) -> Tensors:
    """Fills in what both directions of a layer share, which safetensors holds once."""
    for key, value in list(state.items()):
        for one, other in ((".mixer.fwd.", ".mixer.rev."), (".mixer.rev.", ".mixer.fwd.")):
            if one in key and key.endswith(("in_proj.weight", "out_proj.weight")):
                state.setdefault(key.replace(one, other), value)
    return state


_LAYERS = "backbone.layers.{i}."
LAYOUTS: dict[str, Layout] = {
    "mamba": Layout(
        rules=(
            ("backbone.embedding.", "embedding."),
            ("backbone.embeddings.", "embedding."),  # as Hugging Face's port has it
            ("backbone.layers.{i}.norm.", _LAYERS + "norm1."),
        ),
        tied=True,
    ),
    "hyenadna": Layout(
        rules=(
            ("hyena.backbone.embeddings.word_embeddings.", "embedding."),
            ("hyena.backbone.layers.{i}.", _LAYERS),
            ("hyena.backbone.ln_f.", "backbone.norm_f."),
        ),
        # Runs with activation checkpointing, and the names of its authors' own checkpoints.
        aliases=(
            ("hyena.backbone.layers.{i}.mixer.layer.", _LAYERS + "mixer."),
            ("hyena.backbone.layers.{i}.mlp.layer.", _LAYERS + "mlp."),
            ("model.backbone.embeddings.word_embeddings.", "embedding."),
            ("model.backbone.layers.{i}.mixer.layer.", _LAYERS + "mixer."),
            ("model.backbone.layers.{i}.mlp.layer.", _LAYERS + "mlp."),
            ("model.backbone.layers.{i}.", _LAYERS),
            ("model.backbone.ln_f.", "backbone.norm_f."),
            ("model.lm_head.", "lm_head."),
        ),
        tied=True,
        repair=_shared_frequencies,
    ),
    "caduceus": Layout(
        rules=(
            ("embeddings.word_embeddings.embedding.", "embedding."),
            ("embeddings.word_embeddings.", "embedding."),
            ("layers.{i}.norm.submodule.", _LAYERS + "norm1."),
            ("layers.{i}.norm.", _LAYERS + "norm1."),
            ("layers.{i}.mixer.submodule.mamba_fwd.", _LAYERS + "mixer.fwd."),
            ("layers.{i}.mixer.submodule.mamba_rev.", _LAYERS + "mixer.rev."),
            ("layers.{i}.mixer.mamba_fwd.", _LAYERS + "mixer.fwd."),
            ("layers.{i}.mixer.mamba_rev.", _LAYERS + "mixer.rev."),
            ("norm_f.submodule.", "backbone.norm_f."),
            ("norm_f.", "backbone.norm_f."),
            ("lm_head.lm_head.", "lm_head."),
        ),
        prefixes=("caduceus.backbone.", ""),
        tied=True,
        drop=r"complement_map$",
        repair=_tied_directions,
    ),
    "xlstm": Layout(
        rules=(
            ("token_embedding.", "embedding."),
            ("xlstm_block_stack.blocks.{i}.xlstm_norm.", _LAYERS + "norm1."),
            ("xlstm_block_stack.blocks.{i}.xlstm.", _LAYERS + "mixer."),
            ("xlstm_block_stack.blocks.{i}.ffn_norm.", _LAYERS + "norm2."),
            ("xlstm_block_stack.blocks.{i}.ffn.proj_up.", _LAYERS + "mlp.fc1."),
            ("xlstm_block_stack.blocks.{i}.ffn.proj_down.", _LAYERS + "mlp.fc2."),
            ("xlstm_block_stack.post_blocks_norm.", "backbone.norm_f."),
        ),
        # The equivariant ones of DNA-xLSTM.
        aliases=(
            ("token_embedding.embedding.", "embedding."),
            ("xlstm_block_stack.blocks.{i}.xlstm_norm.submodule.", _LAYERS + "norm1."),
            ("xlstm_block_stack.blocks.{i}.xlstm.submodule.", _LAYERS + "mixer."),
            ("xlstm_block_stack.blocks.{i}.ffn_norm.submodule.", _LAYERS + "norm2."),
            ("xlstm_block_stack.blocks.{i}.ffn.submodule.proj_up.", _LAYERS + "mlp.fc1."),
            ("xlstm_block_stack.blocks.{i}.ffn.submodule.proj_down.", _LAYERS + "mlp.fc2."),
            ("xlstm_block_stack.post_blocks_norm.submodule.", "backbone.norm_f."),
            ("lm_head.lm_head.", "lm_head."),
        ),
        prefixes=("", "backbone.", "model.backbone."),
        shifted=(".norm1.weight", ".norm2.weight", "norm_f.weight"),
        drop=r"(causal_mask|complement_map)$",
        repair=_slstm_kernels,
    ),
}


def find_layout(name: str) -> Layout:
    """Returns a layout by name.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"no published layout named {name!r}; {did_you_mean(name, LAYOUTS)}")
    return LAYOUTS[name]


def load_published(module: nn.Module, path: str | Path, layout: str) -> None:
    """Loads a published checkpoint into a language model, all keys and shapes checked.

    Args:
        module: has ``embedding``, ``backbone`` and ``lm_head``, with the checkpoint's
            hyper-parameters.
        path: the file.
        layout: "mamba", "hyenadna" or "xlstm".

    Raises:
        ConfigError: for an unknown layout.
        DataError: if the file is unusable or of another model.
    """
    state = find_layout(layout).from_published(read_state_dict(path))
    check_state_dict(module, state, path)
    module.load_state_dict(state, strict=True)


def save_published(path: str | Path, module: nn.Module, layout: str) -> None:
    """Writes a language model under published names, as safetensors.

    Args:
        path: file to write.
        module: has ``embedding``, ``backbone`` and ``lm_head``.
        layout: "mamba", "hyenadna" or "xlstm".

    Raises:
        ConfigError: for an unknown layout.
    """
    from safetensors.torch import save_file

    from longseq.core.files import atomic_path

    tensors = find_layout(layout).to_published(module.state_dict())
    with atomic_path(path) as temporary:
        # Clones: safetensors refuses the tied head's shared memory.
        save_file(
            {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()},
            temporary,
        )


def with_head(published: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Returns tensors named as those of a language model: a folder of the model below the head has
    them without the first part of the name."""
    first = next((rule[0].split(".")[0] + "." for rule in layout.rules), "")
    if any(name.startswith(first) for name in published):
        return published
    return {name if name == "lm_head.weight" else first + name: t for name, t in published.items()}
