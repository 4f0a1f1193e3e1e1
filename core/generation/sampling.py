"""What happens between logits and a token: repetition penalty, temperature, top-k, top-p, min-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longseq.core.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; each filter sees what the one before it has left.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: keeps the k likeliest tokens.
        top_p: keeps the likeliest tokens whose probabilities together reach p (nucleus sampling,
            arXiv 1904.09751, section 3.1).
        min_p: keeps tokens at least p times as likely as the likeliest (arXiv 2407.01082).
        repetition_penalty: logits of tokens that were there before, in the prompt too, are divided
            by it where positive and multiplied where negative (arXiv 1909.05858, section 4.1).

    Raises:
        ConfigError: for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature!r}")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {self.top_k!r}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {value!r}")
        if not self.repetition_penalty > 0:
            raise ConfigError(
                f"repetition_penalty must be above 0, got {self.repetition_penalty!r}"
            )
        if self.temperature == 0 and any(
            value is not None for value in (self.top_k, self.top_p, self.min_p)
        ):
            raise ConfigError(
                "top_k, top_p and min_p need a temperature above 0: without one the likeliest "
                "token is taken"
            )

    def penalise(self, scores: Tensor, seen: Sequence[set[int]]) -> Tensor:
        """Returns scores (B, V) with the penalty on the tokens seen in each row.

        Args:
            scores: logits or log-probabilities.
            seen: tokens of each row.
        """
        if self.repetition_penalty == 1:
            return scores
        scores = scores.clone()
        for row, tokens in zip(scores, seen, strict=True):
            index = torch.tensor(sorted(tokens), device=scores.device)
            value = row[index]
            row[index] = torch.where(
                value < 0, value * self.repetition_penalty, value / self.repetition_penalty
            )
        return scores

    def filtered(self, logits: Tensor) -> Tensor:
        """Returns logits (B, V) over the temperature, those of excluded tokens -inf."""
        scores = logits / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, -1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ascending, order = scores.sort(-1)
            unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            unlikely[:, -1] = False  # the likeliest token always stays
            scores = scores.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf)
        if self.min_p is not None:
            probability = scores.softmax(-1)
            least = self.min_p * probability.amax(-1, keepdim=True)
            scores = scores.masked_fill(probability < least, -torch.inf)
        return scores

    def choose(
        self, logits: Tensor, seen: Sequence[set[int]], streams: Sequence[torch.Generator]
    ) -> Tensor:
        """Returns a token for every row.

        Args:
            logits: (B, V).
            seen: tokens of each row, for the penalty.
            streams: a stream of random numbers for each row, so that no row depends on another.

        Returns:
            Token ids (B,).
        """
        scores = self.penalise(logits.float(), seen)
        if self.temperature == 0:
            return scores.argmax(-1)
        probability = self.filtered(scores).softmax(-1).double()
        draws = [torch.rand((), generator=stream, dtype=torch.float64) for stream in streams]
        draw = torch.stack(draws).to(scores.device).unsqueeze(1)
        # The inverse of the distribution function; the last token that has any probability bounds
        # it.
        cumulative = probability.cumsum(-1)
        chosen = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(1)
        positive = probability > 0
        last = probability.shape[-1] - 1 - positive.flip(-1).int().argmax(-1)
        return torch.minimum(chosen, last)
