"""``generate``: prompts of any lengths in, continuations out, a carried state in place of a growing
prompt."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.errors import ConfigError
from longseq.core.generation import beams
from longseq.core.generation.sampling import Sampling
from longseq.core.mixers import State

_CHUNK = 4096  # positions of a prompt that run at once where the mixers' states are finite


class Model(Protocol):
    """What is needed of a language model: ``longseq.core.LanguageModel`` is one."""

    backbone: Backbone

    def hidden(
        self, input_ids: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]: ...

    def join_states(self, states: Sequence[list[State]]) -> list[State]: ...

    def head(self, x: Tensor) -> Tensor: ...

    def step(self, input_ids: Tensor, states: list[State]) -> tuple[Tensor, list[State]]: ...


@dataclass
class Generation:
    """A continuation of a prompt.

    Args:
        prompt: number of the prompt.
        tokens: the new ids, a stop token included.
        stopped: whether a stop token ended it, and not ``max_new_tokens``.
        score: of beam search: the sum of the log-probabilities over length^length_penalty.
    """

    prompt: int
    tokens: list[int]
    stopped: bool = False
    score: float | None = None


def read_prompts(prompts: object, vocab_size: int) -> list[list[int]]:
    """Returns prompts as lists of ids.

    Args:
        prompts: one sequence of ids, several, or a tensor (L,) or (B, L).
        vocab_size: that ids lie below.

    Raises:
        ConfigError: for an empty prompt, ids that are no integers or outside the vocabulary.
    """
    if getattr(prompts, "ndim", None) == 1:  # a tensor or an array is one prompt, empty or not
        prompts = [prompts]
    try:
        rows: list[Any] = list(cast(Iterable[Any], prompts))
        if rows and not isinstance(rows[0], Iterable):
            rows = [rows]
        rows = [list(row.tolist() if hasattr(row, "tolist") else row) for row in rows]
    except TypeError as error:
        raise ConfigError("prompts are token ids: one sequence, several, or a tensor") from error
    for number, row in enumerate(rows):
        if not row:
            raise ConfigError(f"prompt {number} is empty: give it at least one token")
        row[:] = [_token(token, f"prompt {number}") for token in row]
        for token in row:
            if not 0 <= token < vocab_size:
                raise ConfigError(
                    f"prompt {number} holds token {token}, outside the vocabulary of {vocab_size}"
                )
    return rows


def _token(token: Any, what: str) -> int:
    """Returns a token id as an int.

    Raises:
        ConfigError: if it is no integer.
    """
    try:
        if not isinstance(token, bool):
            return operator.index(token)
    except TypeError:
        pass
    raise ConfigError(f"{what} holds {token!r}, which is no token id")


def _whole(name: str, value: Any, least: int | None = None) -> int:
    """Returns a setting as an int; any integer type will do.

    Raises:
        ConfigError: if it is no integer, or below the least.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or (least is not None and whole < least):
        said = "" if least is None else f" of at least {least}"
        raise ConfigError(f"{name} must be an integer{said}, got {value!r}")
    return whole


def prefill(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[State]]:
    """Runs prompts of one length.

    Args:
        model: the language model.
        prompts: token ids, equally many each.

    Returns:
        The logits after the last position (B, V), and the states.
    """
    device = next(model.backbone.parameters()).device
    ids = torch.tensor(prompts, device=device)
    backbone = model.backbone
    finite = all(layer.mixer.finite_state for layer in backbone.residual_layers())
    states: list[State] | None = None
    for part in ids.split(_CHUNK if finite else ids.shape[1], 1):
        x, states = model.hidden(part, states)
    assert states is not None
    return model.head(x[:, -1]), states


def prefill_ragged(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[State]]:
    """Runs prompts of any lengths: those of one length together, the states joined.

    Args:
        model: the language model.
        prompts: token ids.

    Returns:
        As ``prefill``, in the prompts' order.
    """
    groups: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(number)
    results = [prefill(model, [prompts[i] for i in members]) for members in groups.values()]
    if len(results) == 1:
        return results[0]
    order = torch.tensor([i for members in groups.values() for i in members]).argsort()
    logits = torch.cat([logits for logits, _ in results])
    states = model.join_states([states for _, states in results])
    return logits[order.to(logits.device)], select(states, order.tolist())


def select(states: list[State], rows: Sequence[int]) -> list[State]:
    """Returns the states of some rows, in that order."""
    return [
        {
            name: value.index_select(0, torch.tensor(rows, device=value.device))
            for name, value in state.items()
        }
        for state in states
    ]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: object,
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    num_return_sequences: int = 1,
    num_beams: int = 1,
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    stop_tokens: int | Iterable[int] = (),
    seed: int = 0,
    first_prompt: int = 0,
    callback: Callable[[int, int], object] | None = None,
) -> list[Generation]:
    """Continues prompts, each as if it were alone.

    A prompt is run once; from then on the state is carried, so that a token costs the same at every
    position and, for mixers with a finite state, memory does not grow. Sampled continuations have
    a stream of random numbers each, which depends on the seed, the prompt's number and the
    continuation's number alone.

    Args:
        model: a language model, ``longseq.core.LanguageModel`` or one like it.
        prompts: token ids: one sequence, several of any lengths, or a tensor (L,) or (B, L).
        max_new_tokens: of each continuation.
        temperature: see ``Sampling``; 0 is greedy.
        top_k: see ``Sampling``.
        top_p: see ``Sampling``.
        min_p: see ``Sampling``.
        repetition_penalty: see ``Sampling``.
        num_return_sequences: continuations of each prompt.
        num_beams: beams of a beam search; 1 for none.
        num_beam_groups: groups of a diverse beam search (arXiv 1610.02424), a divisor of
            ``num_beams``.
        diversity_penalty: λ, taken from the score of a token for every beam of an earlier group
            that chose it at the same position.
        length_penalty: exponent of the length by which a beam's score is divided.
        early_stopping: True or False, whether a search ends as soon as ``num_beams`` continuations
            are finished, instead of when none that is under way can become better.
        stop_tokens: ids that end a continuation, or one.
        seed: of the random numbers.
        first_prompt: number of the first prompt as the random numbers see it, so that prompts given
            in several calls are continued as in one.
        callback: called with the number of the continuation and each new token as it comes; not
            with beams.

    Returns:
        ``num_return_sequences`` continuations of every prompt, those of the first prompt first;
        of beam search the best first, and fewer where there are not as many.

    Raises:
        ConfigError: for settings out of range or that exclude each other, and unusable prompts.
        DataError: if the model's logits become NaN.
    """
    max_new_tokens = _whole("max_new_tokens", max_new_tokens, 1)
    num_return_sequences = _whole("num_return_sequences", num_return_sequences, 1)
    num_beams = _whole("num_beams", num_beams, 1)
    num_beam_groups = _whole("num_beam_groups", num_beam_groups, 1)
    seed = _whole("seed", seed)
    if callback is not None and not callable(callback):
        raise ConfigError(f"callback must be callable, got {callback!r}")
    lm = cast(Model, model)
    if not lm.backbone.causal:
        raise ConfigError("only causal models generate: this one has a bidirectional mixer")
    vocab_size = cast(nn.Embedding, model.get_submodule("embedding")).num_embeddings
    rows = read_prompts(prompts, vocab_size)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    listed = stop_tokens if isinstance(stop_tokens, Iterable) else [stop_tokens]
    stops = frozenset(_token(token, "stop_tokens") for token in listed)
    for token in sorted(stops):
        if not 0 <= token < vocab_size:
            raise ConfigError(f"stop_tokens holds {token}, outside the vocabulary of {vocab_size}")
    trained = [part for part in model.modules() if part.training]  # a frozen part is not
    model.eval()
    try:
        if num_beams == 1:
            if num_beam_groups > 1 or diversity_penalty:
                raise ConfigError("num_beam_groups and diversity_penalty need num_beams above 1")
            if num_return_sequences > 1 and temperature == 0:
                raise ConfigError(
                    "several greedy continuations of a prompt would be the same: give a "
                    "temperature or num_beams"
                )
            return _decode(
                lm,
                rows,
                max_new_tokens,
                sampling,
                num_return_sequences,
                stops,
                (seed, first_prompt),
                callback,
            )
        if temperature:
            raise ConfigError("beam search does not sample: leave temperature at 0")
        if callback is not None:
            raise ConfigError("beam search knows its tokens only at the end: no callback")
        search = beams.Search(
            num_beams,
            num_beam_groups,
            diversity_penalty,
            length_penalty,
            early_stopping,
            num_return_sequences,
        )
        found: list[Generation] = []
        for number, prompt in enumerate(rows):
            logits, states = prefill(lm, [prompt])
            for tokens, score in search.run(
                lm, prompt, logits, states, max_new_tokens, sampling, stops
            ):
                stopped = tokens[-1] in stops
                found.append(Generation(number, tokens, stopped, score))
        return found
    finally:
        for part in trained:
            part.training = True


def _decode(
    model: Model,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    copies: int,
    stops: frozenset[int],
    seeds: tuple[int, int],
    callback: Callable[[int, int], object] | None,
) -> list[Generation]:
    """Greedy or sampled continuations, all rows side by side until each is done."""
    if not prompts:
        return []
    logits, states = prefill_ragged(model, prompts)
    numbers = [number for number in range(len(prompts)) for _ in range(copies)]
    found = [Generation(number, []) for number in numbers]
    streams = [
        torch.Generator().manual_seed(
            ((seeds[0] * 1_000_003 + seeds[1] + number) * 1_000_003 + index % copies) % (1 << 63)
        )
        for index, number in enumerate(numbers)
    ]
    seen = [set(prompts[number]) for number in numbers]
    alive = list(range(len(numbers)))
    if copies > 1:
        logits, states = logits.repeat_interleave(copies, 0), select(states, numbers)
    for count in range(1, max_new_tokens + 1):
        chosen = sampling.choose(logits, [seen[i] for i in alive], [streams[i] for i in alive])
        tokens = chosen.tolist()
        for index, token in zip(alive, tokens):
            found[index].tokens.append(token)
            found[index].stopped = token in stops
            seen[index].add(token)
            if callback is not None:
                callback(index, token)
        left = [place for place, index in enumerate(alive) if not found[index].stopped]
        if not left or count == max_new_tokens:
            break
        if len(left) < len(alive):
            states = select(states, left)
            chosen = chosen[torch.tensor(left, device=chosen.device)]
            alive = [alive[place] for place in left]
        logits, states = model.step(chosen, states)
    return found
