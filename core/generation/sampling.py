"""What happens between logits and a token: repetition penalty, temperature, top-k, top-p, min-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longseq.core.checks import check_number, check_positive
from longseq.core.errors import ConfigError, DataError


def penalised(values: Tensor, penalty: float) -> Tensor:
    """Returns logits of tokens that were there before, over the penalty where positive and times it
    where negative (arXiv 1909.05858, section 4.1)."""
    return torch.where(values < 0, values * penalty, values / penalty)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Returns logits (..., V) less the largest, over the temperature: nothing overflows."""
    below = logits - logits.amax(-1, keepdim=True)
    return torch.where(below == 0, below, below / temperature)  # which may be 0 in float32


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Returns scores (..., V), all but the k largest of a row -inf."""
    if k >= scores.shape[-1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k, -1).values[..., -1:], -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Returns scores (..., V), all but the likeliest that together reach p -inf; one stays always
    (arXiv 1904.09751, section 3.1)."""
    if p >= 1:
        return scores
    ascending, order = scores.sort(-1)
    unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - p
    unlikely[..., -1] = False  # the likeliest token, whatever rounding says
    return scores.masked_fill(unlikely.scatter(-1, order, unlikely), -torch.inf)


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    """Returns scores (..., V), those less than p times as likely as the likeliest -inf
    (arXiv 2407.01082)."""
    probability = scores.float().softmax(-1)
    return scores.masked_fill(probability < p * probability.amax(-1, keepdim=True), -torch.inf)


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draws a token from every row by the inverse of its distribution function.

    Args:
        scores: logits (B, V), -inf for what is excluded.
        uniform: a number in [0, 1) for each row (B,), float64.

    Returns:
        Token ids (B,).
    """
    probability = scores.softmax(-1).double()
    cumulative = probability.cumsum(-1)
    places = uniform.to(scores.device).unsqueeze(1) * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, places, right=True).squeeze(1)
    # The last token that has any probability bounds it.
    last = probability.shape[-1] - 1 - (probability > 0).flip(-1).int().argmax(-1)
    return torch.minimum(chosen, last)


def require_numbers(logits: Tensor) -> None:
    """Checks that a distribution can be made of logits.

    Raises:
        DataError: if one is NaN or +inf.
    """
    if not logits.amax(-1).isfinite().all():  # NaN is the largest of its row
        raise DataError(
            "the model's logits are not numbers (NaN or inf), so that no token can be chosen",
            hint="load it in float32 if it is in float16, and check its weights",
        )


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
        check_number("temperature", self.temperature)
        if self.temperature < 0:
            raise ConfigError(f"temperature must be at least 0, got {self.temperature!r}")
        if self.top_k is not None:
            check_positive("top_k", self.top_k)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= check_number(name, value) <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {value!r}")
        if check_number("repetition_penalty", self.repetition_penalty) <= 0:
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
            row[index] = penalised(row[index], self.repetition_penalty)
        return scores

    def filtered(self, logits: Tensor) -> Tensor:
        """Returns logits (B, V) over the temperature, those of excluded tokens -inf."""
        scores = tempered(logits, self.temperature)
        if self.top_k is not None:
            scores = keep_top_k(scores, self.top_k)
        if self.top_p is not None:
            scores = keep_top_p(scores, self.top_p)
        return scores if self.min_p is None else keep_min_p(scores, self.min_p)

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

        Raises:
            DataError: for logits that are NaN.
        """
        require_numbers(logits)
        scores = self.penalise(logits.float(), seen)
        if self.temperature == 0:
            return scores.argmax(-1)
        numbers = [torch.rand((), generator=stream, dtype=torch.float64) for stream in streams]
        return draw(self.filtered(scores), torch.stack(numbers))
