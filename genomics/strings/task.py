"""The task of strings: a causal language model of proteins or molecules that can fill in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from longseq.core.errors import ConfigError
from longseq.core.language_model import LanguageModel
from longseq.core.results import Score, print_table, verdict
from longseq.core.training.facts import Fact
from longseq.genomics.data.tokenizer import IGNORE_INDEX
from longseq.genomics.language_task import LanguageTask
from longseq.genomics.metrics import BitsPerBase
from longseq.genomics.strings.alphabets import (
    BEGIN,
    END,
    MIDDLE,
    PREFIX,
    SPECIALS,
    SUFFIX,
    Alphabet,
    alphabet_of,
)
from longseq.genomics.strings.data import StringData
from longseq.genomics.strings.markov import StringMarkov

ORDER = 4
"""Of the Markov models beside a tested model: 0 … 4."""
_MULTIPLE = 16


class StringModel(LanguageModel):
    """The core's language model, in which only symbols and a string's end can follow.

    Args:
        alphabet: of the strings.
        *shape: arguments of ``LanguageModel``.
    """

    def __init__(self, alphabet: Alphabet, *shape: Any) -> None:
        super().__init__(*shape)
        mask = torch.full((shape[0],), -1e4)  # e^-10000 is 0, and no gradient is NaN
        mask[END] = 0.0
        mask[len(SPECIALS) : alphabet.size] = 0.0
        self.mask: Tensor
        self.register_buffer("mask", mask, persistent=False)

    def head(self, x: Tensor) -> Tensor:
        """See ``LanguageModel.head``."""
        return super().head(x) + self.mask


class StringLanguageModel(LanguageTask):
    """Next-symbol prediction of proteins or SMILES; the metric is bits per symbol, a string's end
    included. Its test prints order-k models of the training strings beside it.

    Args:
        alphabet: "protein" or "smiles"; the data's if it is not given.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names or of pairs [name, hyper-parameters].
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D, or one for each mixer; 0 for none.
        norm: "rms", "layer" or "layer_nobias".
        dropout: on residual branches.
        tie_embeddings: whether the head shares the embedding's weights.
        mlp: "gelu" or "geglu", see ``Backbone``.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    unit = "symbols"
    longest = Fact(lambda: 0)
    fills = Fact(lambda: False)

    def __init__(
        self,
        alphabet: str = "protein",
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | list[Any] = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float | dict[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias"] = "rms",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        mlp: Literal["gelu", "geglu"] = "gelu",
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.alphabet = alphabet_of(alphabet)
        size = -(-self.alphabet.size // _MULTIPLE) * _MULTIPLE
        self.model = StringModel(
            self.alphabet,
            size,
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            tie_embeddings,
            mlp,
        )
        if not self.model.backbone.causal:
            raise ConfigError(f"a causal language model needs causal mixers, got {mixer!r}")

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns bits per symbol."""
        return {"bits_per_symbol": BitsPerBase()}

    def count_units(self, batch: Mapping[str, Tensor]) -> int:
        """Returns the symbols of a batch, ends included."""
        return int((batch["targets"] != IGNORE_INDEX).sum())

    def check_data(self, data: Any) -> None:
        """See ``BaseTask``."""
        if isinstance(data, StringData) and data.alphabet != self.alphabet:
            raise ConfigError(
                f"the model's alphabet is {self.alphabet.name}, the data's {data.alphabet.name}"
            )

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns logits (B, L, V) of the symbols after ``input_ids`` (B, L)."""
        logits: Tensor = self.model(input_ids, None, keep_states=False)[0]
        return logits

    def compute(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns the mean loss in nats per symbol, and what the metrics need."""
        return self.score(self(batch["input_ids"]), batch["targets"])

    def on_test_epoch_end(self) -> None:
        """Prints the model beside order-k models of the training strings, and the verdict."""
        data = self.data
        metric = next(iter(self.metrics["test"].compute().values()))  # type: ignore[operator]
        if not isinstance(data, StringData) or not self.trainer.is_global_zero:
            return
        parts, symbols = data.parts(), len(self.alphabet.symbols) + 1
        train, test = ([data.strings[i] for i in parts[name]] for name in ("train", "test"))
        if not train:
            print("no order-k model beside it: none of this file's strings is for training")
            return
        bits = StringMarkov(train, ORDER, self.alphabet.size, symbols).bits(test)
        scores = [Score(f"order {k}", float(value)) for k, value in enumerate(bits)]
        scores.append(Score(type(self).__name__, float(metric), "model"))
        print_table(scores, "bits per symbol", f"{len(test):,} strings that were not trained on")
        print(verdict(scores, "bits per symbol"))

    @torch.inference_mode()
    def complete(
        self,
        before: str = "",
        after: str | None = None,
        count: int = 1,
        most: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Returns whole strings: what is before, what the model draws, and what is after.

        Args:
            before: beginning of the string.
            after: end of the string, which the drawn part is fitted to; None for no given end. The
                model must have been trained with ``data.infill`` above 0.
            count: strings.
            most: symbols that are drawn at most; the longest training string's if None.
            temperature: see ``Sampling``; 0 takes the likeliest symbol.
            top_k: see ``Sampling``.
            top_p: see ``Sampling``.
            seed: of the random numbers.

        Raises:
            DataError: for characters that are no symbols.
            ConfigError: for settings out of range, and an end given to a model that never learnt to
                fill in.
        """
        if after is not None and not self.fills:
            raise ConfigError("this model was trained with data.infill=0: it cannot fill in a part")
        if count < 1:
            raise ConfigError(f"count must be at least 1, got {count}")
        if most is not None and most < 1:
            raise ConfigError(f"most must be at least 1, got {most}")
        first = self.alphabet.encode(before, record="before")
        prompt: list[int] = [BEGIN, *first.tolist()]
        if after is not None:
            last = self.alphabet.encode(after, record="after").tolist()
            prompt = [PREFIX, *first.tolist(), SUFFIX, *last, MIDDLE]
        parts = self.model.generate(
            [prompt] * count,
            most or self.longest or 1024,
            stop_tokens=END,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        drawn = [self.alphabet.decode(np.array(part.tokens)) for part in parts]
        return [self.alphabet.clean(before) + text + (after or "").strip() for text in drawn]
