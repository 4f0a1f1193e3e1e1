"""Beam search and diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longseq.core.checks import check_number
from longseq.core.errors import ConfigError
from longseq.core.generation.sampling import Sampling, require_numbers
from longseq.core.mixers import State

_NONE = -1e9  # the sum of a row that is no beam yet: below every sum of log-probabilities
_STEEPEST = 40  # largest exponent of a length: powers of a million stay finite


@dataclass
class _Finished:
    """The best finished continuations of one group, at most ``size``."""

    size: int
    length_penalty: float
    early_stopping: bool
    kept: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, total: float, tokens: list[int]) -> None:
        """Keeps a continuation if it is among the best.

        Args:
            total: sum of its log-probabilities; of one that started from no beam it is lower than
                any sum, and it is not kept.
            tokens: of it.
        """
        if total <= _NONE / 2:
            return
        self.kept.append((total / len(tokens) ** self.length_penalty, tokens))
        self.kept.sort(key=lambda one: -one[0])  # stable: the earlier of two equal ones is first
        del self.kept[self.size :]

    def done(self, best_total: float, length: int) -> bool:
        """Returns whether nothing that is under way can become better.

        Args:
            best_total: of what is under way.
            length: of it.
        """
        if len(self.kept) < self.size:
            return False
        return self.early_stopping or self.kept[-1][0] >= best_total / length**self.length_penalty


@dataclass(frozen=True)
class Search:
    """A (diverse) beam search.

    Beams are cut into groups, which take their tokens one group after the other at every position.
    A group's log-probabilities are lowered by λ for every beam of the earlier groups that took the
    token at this position (equation 6 with the Hamming diversity of section 4).

    Args:
        num_beams: beams B.
        num_beam_groups: groups G; 1 is beam search.
        diversity_penalty: λ.
        length_penalty: exponent of the length by which scores are divided.
        early_stopping: whether a group ends once it has as many finished as it has beams.
        num_return_sequences: continuations to return.

    Raises:
        ConfigError: for settings that do not fit.
    """

    num_beams: int
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        if self.num_beams % self.num_beam_groups:
            raise ConfigError(
                f"num_beam_groups ({self.num_beam_groups}) must divide num_beams ({self.num_beams})"
            )
        if self.num_return_sequences > self.num_beams:
            raise ConfigError(
                f"num_return_sequences ({self.num_return_sequences}) must be at most num_beams "
                f"({self.num_beams})"
            )
        if abs(check_number("length_penalty", self.length_penalty)) > _STEEPEST:
            raise ConfigError(
                f"length_penalty must lie between {-_STEEPEST} and {_STEEPEST}, got "
                f"{self.length_penalty!r}"
            )
        if not isinstance(self.early_stopping, bool):
            raise ConfigError(f"early_stopping must be True or False, got {self.early_stopping!r}")
        if check_number("diversity_penalty", self.diversity_penalty) < 0:
            raise ConfigError(f"diversity_penalty must be at least 0: {self.diversity_penalty!r}")
        if self.num_beam_groups > 1 and self.diversity_penalty == 0:
            raise ConfigError(
                "num_beam_groups without a diversity_penalty above 0 finds the same in every group"
            )

    def run(
        self,
        model: Any,
        prompt: Sequence[int],
        logits: Tensor,
        states: list[State],
        max_new_tokens: int,
        sampling: Sampling,
        stops: frozenset[int],
    ) -> Iterator[tuple[list[int], float]]:
        """Yields the best continuations of one prompt with their scores, the best first.

        Args:
            model: as ``generate`` takes it.
            prompt: its ids, for the repetition penalty.
            logits: after the prompt (1, V).
            states: after the prompt, of one row.
            max_new_tokens: at most.
            sampling: of which the repetition penalty applies.
            stops: ids that end a continuation.
        """
        width = self.num_beams // self.num_beam_groups
        groups = [
            _Finished(width, self.length_penalty, self.early_stopping)
            for _ in range(self.num_beam_groups)
        ]
        done = [False] * self.num_beam_groups
        # All beams of a group begin as the same row: only the first counts.
        totals = torch.full((self.num_beams,), _NONE, dtype=torch.float32, device=logits.device)
        totals[::width] = 0
        tokens: list[list[int]] = [[] for _ in range(self.num_beams)]
        logits = logits.expand(self.num_beams, -1)
        rows = [0] * self.num_beams  # of the states, that each beam continues
        for length in range(1, max_new_tokens + 1):
            taken: Counter[int] = Counter()
            sources, new = list(range(self.num_beams)), [0] * self.num_beams
            grown = list(tokens)
            for number, group in enumerate(groups):
                if done[number]:
                    continue
                low = number * width
                require_numbers(logits[low : low + width])
                scores = logits[low : low + width].float().log_softmax(-1)
                if taken and self.diversity_penalty:
                    scores = scores.clone()
                    index = torch.tensor(list(taken), device=scores.device)
                    count = torch.tensor(list(taken.values()), device=scores.device)
                    scores[:, index] -= self.diversity_penalty * count
                seen = [{*prompt, *tokens[low + beam]} for beam in range(width)]
                scores = sampling.penalise(scores, seen)
                best = scores + totals[low : low + width, None]
                vocabulary = scores.shape[-1]
                few = min(max(2, 1 + len(stops)) * width, best.numel())
                values, places = best.flatten().topk(few)
                chosen: list[tuple[float, int, int]] = []
                for rank, (value, place) in enumerate(zip(values.tolist(), places.tolist())):
                    beam, token = low + place // vocabulary, place % vocabulary
                    if token in stops:
                        if rank < width:
                            group.add(value, [*tokens[beam], token])
                    else:
                        chosen.append((value, beam, token))
                    if len(chosen) == width:
                        break
                # Where every token ends a continuation there is none to go on with.
                done[number] = group.done(values[0].item(), length) or not chosen
                for place, (value, beam, token) in enumerate(chosen, low):
                    totals[place], sources[place], new[place] = value, beam, token
                    grown[place] = [*tokens[beam], token]
                taken.update(token for _, _, token in chosen)
            tokens = grown
            if all(done) or length == max_new_tokens:
                break
            rows = [rows[beam] for beam in sources]
            device = logits.device
            states = [
                {name: value[torch.tensor(rows, device=device)] for name, value in state.items()}
                for state in states
            ]
            rows = list(range(self.num_beams))
            logits, states = model.step(torch.tensor(new, device=device), states)
        for number, group in enumerate(groups):
            for beam in range(number * width, (number + 1) * width):
                if not done[number]:
                    group.add(totals[beam].item(), tokens[beam])
        best_first = sorted(
            (one for group in groups for one in group.kept), key=lambda one: -one[0]
        )
        for score, found in best_first[: self.num_return_sequences]:
            yield found, score
