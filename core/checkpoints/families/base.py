"""What a family of published models is, and a reader of ``config.json`` that lets no setting pass
unseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longseq.core.checkpoints.layouts import Layout
from longseq.core.errors import DataError

_INERT = """
architectures model_type transformers_version _name_or_path name_or_path dtype torch_dtype
bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id
use_cache return_dict use_return_dict output_attentions output_hidden_states output_router_logits
is_encoder_decoder is_decoder problem_type id2label label2id torchscript use_bfloat16
initializer_range rescale_prenorm_residual router_aux_loss_coef z_loss_coefficient
attention_dropout hidden_dropout max_position_embeddings chunk_size_feed_forward
num_logits_to_keep calc_logits_for_entire_prompt _attn_implementation_autoset
use_mambapy use_falcon_mambapy use_associative_scan use_mamba_kernels
layer_types layers_block_type
"""
INERT = frozenset(_INERT.split())
"""Settings without effect on what a model computes from tokens, or that follow from others."""


class Published:
    """A ``config.json`` that is read setting by setting; what nobody asked for is refused.

    Args:
        config: its content.
        path: the file, for messages.
        ignore: settings that may be there unread.
    """

    def __init__(
        self, config: Mapping[str, Any], path: str | Path | None = None, ignore: Iterable[str] = ()
    ) -> None:
        self.config, self.path = config, path
        self.seen = INERT | set(ignore)

    def get(self, name: str, default: Any) -> Any:
        """Returns a setting, or the family's default where it is missing or null."""
        self.seen |= {name}
        value = self.config.get(name)
        if value is None:
            return default
        self._check_kind(name, value, default)
        return value

    def _check_kind(self, name: str, value: Any, default: Any) -> None:
        """Refuses a value of another kind than the default, and a negative norm's ε."""
        if isinstance(default, bool):
            fits, said = isinstance(value, bool), "true or false"
        elif isinstance(default, int | float):
            # A width may be a broken multiple of another.
            whole = isinstance(default, int) and "expand" not in name
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            said = "an integer" if whole else "a number"
            if fits and name.endswith(("eps", "epsilon")):
                fits, said = 0 <= value < math.inf, "a number of at least 0"
        else:
            return
        if not fits:
            self.refuse(name, f"must be {said}")

    def number(self, name: str, default: float) -> float:
        """Returns a setting as a number, infinities included."""
        value = self.config.get(name)
        self.seen |= {name}
        return plain_number(default if value is None else value)

    def need(self, name: str, default: Any, *allowed: Any) -> None:
        """Refuses a setting that has another value than those that our layers compute."""
        self.seen |= {name}
        value = self.config.get(name)
        value = default if value is None else value
        if value not in (allowed or (default,)):
            self.refuse(name, "is not what longseq computes", allowed or (default,))

    def unused(self, *names: str) -> None:
        """Names settings that have no effect in this family."""
        self.seen |= set(names)

    def refuse(self, name: str, why: str, allowed: Iterable[Any] = ()) -> None:
        """Raises the error that names a setting."""
        hint = " or ".join(repr(value) for value in allowed)
        raise DataError(
            f"{name} = {self.config.get(name)!r} {why}",
            path=self.path,
            hint=hint and f"only {hint}",
        )

    def done(self) -> None:
        """Refuses settings that were not read.

        Raises:
            DataError: naming them.
        """
        left = [k for k, v in self.config.items() if k not in self.seen and v is not None]
        if left:
            shown = ", ".join(f"{name} = {self.config[name]!r}" for name in left[:3])
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise DataError(
                f"has settings that longseq does not know for {self.config.get('model_type')}: "
                f"{shown}{more}",
                path=self.path,
                hint=f"if they do not matter: from_pretrained(…, ignore={left!r})",
            )

    def rope(self, theta: float, fraction: float) -> tuple[float, float]:
        """Returns the base of the rotary frequencies and the part of a head that is turned.

        Args:
            theta: the family's default base.
            fraction: the family's default part.
        """
        nested = dict(self.get("rope_parameters", {}))
        for scaling in (nested, dict(self.get("rope_scaling", {}))):
            kind = scaling.get("rope_type", scaling.get("type", "default"))
            unknown = set(scaling) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
            if kind != "default" or unknown:
                name = "rope_parameters" if "rope_parameters" in self.config else "rope_scaling"
                self.refuse(name, "scales rotary positions, which longseq does not")
        found = []
        for name, default in (("rope_theta", theta), ("partial_rotary_factor", fraction)):
            inner = nested.get(name)
            value = self.get(name, float(default if inner is None else inner))
            if inner is not None and value != inner:
                self.refuse(name, f"is {inner!r} in rope_parameters: which one holds is not said")
            found.append(float(value))
        return found[0], found[1]


def plain_number(value: Any) -> float:
    """Returns a number as JSON files hold it, infinities written out included."""
    if isinstance(value, Mapping):
        value = next(iter(value.values()))
    return math.inf if str(value) in ("Infinity", "inf") else float(value)


@dataclass(frozen=True)
class Family:
    """One ``model_type``.

    Args:
        model_type: as in ``config.json``.
        architecture: the class that transformers loads it with.
        read: turns a configuration into the arguments of ``LanguageModel``.
        layout: the published names, for such arguments.
        write: turns such arguments into a configuration; None where only a configuration that was
            read is written back.
    """

    model_type: str
    architecture: str
    read: Callable[[Published], dict[str, Any]]
    layout: Callable[[Mapping[str, Any]], Layout]
    write: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


GATED = (
    (".mlp.fc1.weight", (".mlp.gate_proj.weight", ".mlp.up_proj.weight")),
    (".mlp.fc1.bias", (".mlp.gate_proj.bias", ".mlp.up_proj.bias")),
)
"""How published gated MLPs keep the two halves of their first map."""
