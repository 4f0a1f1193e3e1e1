"""A language model: token embedding, the residual backbone of any mixers, and a head over the
vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checkpoints import folders
from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError, DataError
from longseq.core.generation import Generation, generate
from longseq.core.mixers import State
from longseq.core.mixers.pieces import in_pieces, piece_length
from longseq.core.ops.linear_maps import mapped


class LanguageModel(nn.Module):
    """Predicts every next token from all tokens before it; whole, in chunks, or one at a time.

    Args:
        vocab_size: tokens V.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names, see ``Backbone``.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D, or one for each mixer; 0 for none.
        norm: see ``Backbone``.
        dropout: on residual branches.
        tie_embeddings: whether the head shares the embedding's weights.
        mlp: see ``Backbone``.
        norm_eps: added to the mean square in every norm.
        mlp_kwargs: hyper-parameters of the MLPs, see ``Backbone``.
        residual_in_fp32: see ``Backbone``.
        embedding_scale: constant factor of the embedding.
        logit_scale: constant factor of the logits.
        logit_soft_cap: c in c·tanh(logits / c); None for none.

    Raises:
        ConfigError: for unknown names and sizes that do not fit.

    Attributes:
        settings: the arguments, as ``save_pretrained`` writes them.
        published: the ``config.json`` of the folder that it was read from; None if there is none.
        stop_tokens: the ids that end a text, as that folder names them.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | Sequence[str | Sequence[Any]] = "mamba",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float | Mapping[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias", "rms_offset"] = "rms",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        mlp: Literal["gelu", "geglu", "geglu_tanh", "swiglu"] = "gelu",
        norm_eps: float = 1e-5,
        mlp_kwargs: Mapping[str, Any] | None = None,
        residual_in_fp32: bool = False,
        embedding_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        self.published: dict[str, Any] | None = None
        self.stop_tokens: tuple[int, ...] = ()
        check_positive("vocab_size", vocab_size)
        if logit_soft_cap is not None and logit_soft_cap <= 0:
            raise ConfigError(f"logit_soft_cap must be above 0, got {logit_soft_cap!r}")
        self.embedding_scale, self.logit_scale = embedding_scale, logit_scale
        self.logit_soft_cap = logit_soft_cap
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            mlp,
            norm_eps,
            mlp_kwargs,
            residual_in_fp32,
        )
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> LanguageModel:
        # ``to_empty`` makes new parameters, and of a shared one two.
        maps = (self.lm_head, self.embedding)
        plain = (type(maps[0]), type(maps[1])) == (nn.Linear, nn.Embedding)
        tied = plain and self.lm_head.weight is self.embedding.weight
        super()._apply(fn, recurse)
        if tied:
            self.lm_head.weight = self.embedding.weight
        return self

    def embed(self, input_ids: Tensor) -> Tensor:
        """Returns token ids (...) as vectors (..., D).

        Raises:
            ArgumentError: for what are no token ids, or ids outside the vocabulary.
        """
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise ArgumentError(f"token ids must be int64 or int32, got {input_ids.dtype}")
        try:
            x: Tensor = self.embedding(input_ids)
        except IndexError as error:
            low, high = int(input_ids.min()), int(input_ids.max())
            raise ArgumentError(
                f"token ids must lie below vocab_size = {self.embedding.num_embeddings}, got "
                f"{low} to {high}"
            ) from error
        return x if self.embedding_scale == 1 else x * self.embedding_scale

    def head(self, x: Tensor) -> Tensor:
        """Returns the logits (..., V) of the backbone's output (..., D)."""
        logits = mapped(self.lm_head, x)
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        if self.logit_soft_cap is not None:
            logits = self.logit_soft_cap * torch.tanh(logits / self.logit_soft_cap)
        return logits

    def forward(
        self,
        input_ids: Tensor,
        states: list[State] | None = None,
        segment_ids: Tensor | None = None,
        keep_states: bool = True,
        *,
        attention_mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, list[State]]:
        """Runs a whole sequence or the next chunk of one.

        A long input goes in pieces of time where nothing but states joins them, see
        ``Backbone.forward``: beside the logits there is never more than a piece.

        Args:
            input_ids: token ids (B, L).
            states: from the previous chunk; None at the start.
            segment_ids: see ``Mixer.forward``.
            keep_states: whether states are returned; those of long convolutions are as long as the
                input.
            attention_mask: bool or integer (B, L), 0 at padding, wherever it is.
            lengths: of each row (B,), in place of a mask: its first positions are real.

        Returns:
            Logits of the next token (B, L, V) and the states after the last position (none without
            ``keep_states``).
        """
        if attention_mask is None and lengths is None and segment_ids is None:
            size = piece_length(self, input_ids, self.backbone.d_model, None)
            if size is not None and self.backbone.bounded_state:
                logits, last = in_pieces(self._logits, None, input_ids, states, None, size)
                return logits, last if keep_states else []
        x, states = self.hidden(
            input_ids,
            states,
            segment_ids,
            keep_states,
            attention_mask=attention_mask,
            lengths=lengths,
        )
        return self.head(x), states

    def _logits(
        self, input_ids: Tensor, states: list[State] | None, segment_ids: Tensor | None
    ) -> tuple[Tensor, list[State]]:
        """As ``forward``, for a piece of a long input."""
        x, states = self.hidden(input_ids, states, segment_ids)
        return self.head(x), states

    def hidden(
        self,
        input_ids: Tensor,
        states: list[State] | None = None,
        segment_ids: Tensor | None = None,
        keep_states: bool = True,
        *,
        attention_mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, list[State]]:
        """Returns the normalised output of the last layer (B, L, D) in place of logits; see
        ``forward``."""
        return self.backbone(
            self.embed(input_ids),
            states,
            segment_ids,
            keep_states,
            attention_mask=attention_mask,
            lengths=lengths,
        )

    def join_states(self, states: Sequence[list[State]]) -> list[State]:
        """Returns the states of several batches as that of one; see ``Mixer.join_states``."""
        return self.backbone.join_states(states)

    def step(self, input_ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Runs one position: input_ids (B,) to logits (B, V)."""
        x, states = self.backbone.step(self.embed(input_ids), states)
        return self.head(x), states

    def init_states(self, batch: int, dtype: torch.dtype | None = None) -> list[State]:
        """Returns the states at the start of a sequence."""
        return self.backbone.init_states(batch, dtype=dtype)

    def generate(
        self,
        prompts: Sequence[int] | Sequence[Sequence[int]] | Tensor,
        max_new_tokens: int = 64,
        *,
        stop_tokens: int | Iterable[int] | None = None,
        callback: Callable[[int, int], object] | None = None,
        **settings: Any,
    ) -> list[Generation]:
        """Continues prompts, each exactly as if it were alone; see
        ``longseq.core.generation.generate`` for all settings.

        Args:
            prompts: token ids: one sequence, several of any lengths, or a tensor (L,) or (B, L).
            max_new_tokens: of each continuation.
            stop_tokens: ids that end a continuation, or one; None for those of the published model.
            callback: called with the number of the continuation and each new token as it comes.
            **settings: ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
                ``num_beams``, ``num_beam_groups``, …

        Returns:
            The continuations, those of the first prompt first.
        """
        if stop_tokens is None:
            stop_tokens = self.stop_tokens
        return generate(
            self,
            prompts,
            max_new_tokens,
            stop_tokens=stop_tokens,
            callback=callback,
            **settings,
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | str = "auto",
        ignore: Iterable[str] = (),
    ) -> LanguageModel:
        """Reads a folder as transformers and ``save_pretrained`` write it; nothing is executed.

        Args:
            folder: with ``config.json`` and the weights: ``model.safetensors``,
                ``pytorch_model.bin``, or either in shards beside an ``.index.json``.
            dtype: of the parameters: "auto" for the one that the configuration names, or
                "float32", … State-space parameters (A, D, step-size biases) stay at least float32.
            ignore: settings of ``config.json`` that are unknown to us and known not to matter.

        Returns:
            The model in evaluation mode.

        Raises:
            DataError: for files that are missing or damaged, an unknown ``model_type``, and every
                setting that this model would not honour, by its name.
        """
        config = folders.read_config(folder)
        settings, layout = folders.read_family(folder, config, ignore)
        folders.check_sizes(folder, settings)
        try:
            model = LanguageModel(**settings)
        # RuntimeError: sizes beyond the memory
        except (TypeError, ConfigError, RuntimeError, MemoryError, OverflowError) as error:
            raise DataError(
                f"does not describe a model: {error}", path=Path(folder) / folders.CONFIG
            ) from error
        folders.load_folder(folder, model, layout, folders.find_dtype(dtype, config))
        model.stop_tokens = folders.stop_tokens(folder, config)
        model.published = None if config.get("model_type") == folders.OWN_TYPE else dict(config)
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, family: str | None = None, max_shard_size: int = 5 << 30
    ) -> None:
        """Writes ``config.json`` and ``model.safetensors``.

        Args:
            folder: is made if it is not there; files of these names are replaced.
            family: ``model_type`` in whose names it is written, so that transformers reads it:
                "mamba", "mamba2" or "falcon_mamba"; None for that of the folder it was read from,
                and "longseq" for a model that was not read from one.
            max_shard_size: bytes in a file of weights, beyond which there are several and an index.

        Raises:
            ConfigError: if the model has settings that the family does not have.
            DataError: if a file cannot be written.
        """
        folders.save_folder(
            folder, self, self.settings, self.published, family, max_shard_size, self.stop_tokens
        )
