"""Synthetic recall tasks: sequences whose answers are somewhere earlier in them, at any length,
from a seed.

Every task draws tokens (B, L) and labels (B, L); a label is the right output at its position, or
-100 where nothing is asked. Token 0 is filler; token 1, where a task has one, asks or separates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longseq.core.errors import ConfigError, did_you_mean

IGNORE = -100
_FILLER, _MARK, _FIRST = 0, 1, 2
_Arrays = tuple[np.ndarray, np.ndarray]


class Batch(NamedTuple):
    """Tokens (B, L) and labels (B, L), int64; labels are -100 where nothing is asked."""

    tokens: Tensor
    labels: Tensor


@dataclass(frozen=True)
class RecallTask:
    """A family of sequences, one for each length.

    Attributes:
        name: as on the command line.
        about: what is asked, in a line.
        vocabulary: number of tokens, inputs and answers together.
        train_lengths: lengths to train on, in turn.
        test_lengths: lengths to test on, the longest of them longer than any seen in training.
        chance: accuracy of guessing among the possible answers.
        draw: (rng, batch, length) to tokens and labels.
    """

    name: str
    about: str
    vocabulary: int
    train_lengths: tuple[int, ...]
    test_lengths: tuple[int, ...]
    chance: float
    draw: Callable[[np.random.Generator, int, int], _Arrays]

    def sample(self, batch: int, length: int, seed: int) -> Batch:
        """Draws a batch; the same arguments give the same batch on every machine.

        Args:
            batch: number of sequences B.
            length: tokens in each, L.
            seed: of the draw.

        Raises:
            ConfigError: if the task does not fit into ``length``.
        """
        tokens, labels = self.draw(np.random.default_rng(seed), batch, length)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(labels))


def get_task(name: str) -> RecallTask:
    """Returns the task of that name.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    if name not in TASKS:
        raise ConfigError(f"no recall task named {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def _blank(batch: int, length: int) -> _Arrays:
    return np.full((batch, length), _FILLER, np.int64), np.full((batch, length), IGNORE, np.int64)


def _require(task: str, length: int, least: int) -> None:
    if length < least:
        raise ConfigError(f"{task} needs a length of at least {least}, got {length}")


def _subsets(rng: np.random.Generator, batch: int, among: int, size: int) -> np.ndarray:
    """Returns ``size`` different integers below ``among`` for each row, in random order."""
    return rng.random((batch, among)).argsort(1)[:, :size]


_COPIED, _COPY_ALPHABET = 4, 14


def _selective_copying(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """Tokens scattered over filler at random distances, then as many marks: say the tokens in
    order."""
    _require("selective_copying", length, 2 * _COPIED)
    tokens, labels = _blank(batch, length)
    content = rng.integers(_FIRST, _FIRST + _COPY_ALPHABET, (batch, _COPIED))
    places = np.sort(_subsets(rng, batch, length - _COPIED, _COPIED), 1)
    np.put_along_axis(tokens, places, content, 1)
    tokens[:, -_COPIED:] = _MARK
    labels[:, -_COPIED:] = content
    return tokens, labels


_INDUCTION_ALPHABET = 14


def _induction_heads(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """Random tokens, somewhere a mark and its successor; a mark ends the sequence: say the
    successor."""
    _require("induction_heads", length, 3)
    tokens, labels = _blank(batch, length)
    tokens[:] = rng.integers(_FIRST, _FIRST + _INDUCTION_ALPHABET, (batch, length))
    place = rng.integers(0, length - 2, batch)
    row = np.arange(batch)
    tokens[row, place] = _MARK
    tokens[:, -1] = _MARK
    labels[:, -1] = tokens[row, place + 1]
    return tokens, labels


_AR_KEYS = _AR_VALUES = 10


def _associative_recall(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """Pairs of key and value, repeated as they come; then a mark and a key seen before: say its
    value."""
    _require("associative_recall", length, 4)
    tokens, labels = _blank(batch, length)
    pairs = (length - 2) // 2
    mapping = rng.integers(0, _AR_VALUES, (batch, _AR_KEYS)) + _FIRST + _AR_KEYS
    keys = rng.integers(0, _AR_KEYS, (batch, pairs))
    start = length - 2 - 2 * pairs
    tokens[:, start:-2:2] = keys + _FIRST
    tokens[:, start + 1 : -2 : 2] = np.take_along_axis(mapping, keys, 1)
    row = np.arange(batch)
    asked = keys[row, rng.integers(0, pairs, batch)]
    tokens[:, -2], tokens[:, -1] = _MARK, asked + _FIRST
    labels[:, -1] = mapping[row, asked]
    return tokens, labels


_MQ_KEYS, _MQ_MANY = 32, 64
_MQ_POWER = 0.01


def _multi_query_recall(
    name: str, most: int, rng: np.random.Generator, batch: int, length: int
) -> _Arrays:
    """L / 4 different pairs of key and value, then every key again, sooner rather than later: its
    value. There are ``most`` keys and as many values."""
    _require(name, length, 4)
    pairs = length // 4
    if pairs > most:
        raise ConfigError(f"{name} has {most} keys: its longest length is {4 * most + 3}")
    tokens, labels = _blank(batch, length)
    keys = _subsets(rng, batch, most, pairs) + _FIRST
    values = rng.integers(0, most, (batch, pairs)) + _FIRST + most
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    # Places of the questions without replacement, with the weights of a power law (Gumbel's top-k
    # trick).
    slots = (length - 2 * pairs) // 2
    weights = (_MQ_POWER - 1) * np.log(np.arange(1, slots + 1))
    places = (weights + rng.gumbel(size=(batch, slots))).argsort(1)[:, ::-1][:, :pairs]
    places = 2 * pairs + 2 * places
    np.put_along_axis(tokens, places, keys, 1)
    np.put_along_axis(labels, places, values, 1)
    return tokens, labels


_JOINT_MOST, _JOINT_VALUES = 16, 16


def _joint_recall(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """n contexts of n keys each, a key's value differing by context; all again in another order:
    the value.

    A context is its own token, then key, value, key, value, …; filler stands in front if the length
    is odd.
    """
    _require("joint_recall", length, 8)
    n = 1
    while n < _JOINT_MOST and 2 * (n + 1) * (2 * n + 3) + 2 <= length:
        n += 1
    tokens, labels = _blank(batch, length)
    table = rng.integers(0, _JOINT_VALUES, (batch, n, n)) + _FIRST
    first_key, first_context = _FIRST + _JOINT_VALUES, _FIRST + _JOINT_VALUES + _JOINT_MOST
    row = np.arange(batch)[:, None]
    at = length - 2 * n * (2 * n + 1) - 1
    for asked in (False, True):
        contexts = _subsets(rng, batch, n, n)
        for c in range(n):
            context = contexts[:, c : c + 1]
            keys = _subsets(rng, batch, n, n)
            tokens[:, at] = context[:, 0] + first_context
            tokens[:, at + 1 : at + 2 * n : 2] = keys + first_key
            tokens[:, at + 2 : at + 2 * n + 1 : 2] = table[row, context, keys]
            if asked:
                labels[:, at + 1 : at + 2 * n : 2] = table[row, context, keys]
            at += 2 * n + 1
        if not asked:
            tokens[:, at] = _MARK
            at += 1
    return tokens, labels


def _parity(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """Random bits: say at every position whether the ones so far are odd in number."""
    bits = rng.integers(0, 2, (batch, length))
    return bits, bits.cumsum(1) % 2


_S3 = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
# [g, h] the number of "first g, then h".
_S3_PRODUCTS = np.array(
    [[int((_S3[g][_S3[h]] == _S3).all(1).argmax()) for h in range(6)] for g in range(6)]
)


def _s3_composition(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """Random permutations of three things: say at every position what all so far make together."""
    tokens = rng.integers(0, len(_S3), (batch, length))
    labels, state = np.empty_like(tokens), np.zeros(batch, np.int64)
    for t in range(length):
        labels[:, t] = state = _S3_PRODUCTS[state, tokens[:, t]]
    return tokens, labels


_DELAY, _DELAY_ALPHABET = 16, 8


def _delay(rng: np.random.Generator, batch: int, length: int) -> _Arrays:
    """Random tokens: say the one of 16 positions before."""
    _require("delay", length, _DELAY + 1)
    tokens, labels = _blank(batch, length)
    tokens[:] = rng.integers(_FIRST, _FIRST + _DELAY_ALPHABET, (batch, length))
    labels[:, _DELAY:] = tokens[:, :-_DELAY]
    return tokens, labels


TASKS: dict[str, RecallTask] = {
    task.name: task
    for task in (
        RecallTask(
            "selective_copying",  # arXiv 2312.00752, section 4.1.1
            f"repeat {_COPIED} tokens scattered over filler",
            _FIRST + _COPY_ALPHABET,
            (32, 64),
            (32, 64, 128, 256),
            1 / _COPY_ALPHABET,
            _selective_copying,
        ),
        RecallTask(
            "induction_heads",  # arXiv 2212.14052, section 3.1; 2312.00752, section 4.1.2
            "say what followed the mark the last time",
            _FIRST + _INDUCTION_ALPHABET,
            (32,),
            (32, 64, 128),
            1 / _INDUCTION_ALPHABET,
            _induction_heads,
        ),
        RecallTask(
            "associative_recall",  # arXiv 2212.14052, section 3.1
            "one question after pairs of key and value",
            _FIRST + _AR_KEYS + _AR_VALUES,
            (64,),
            (64, 128, 256),
            1 / _AR_VALUES,
            _associative_recall,
        ),
        RecallTask(
            "multi_query_recall",  # arXiv 2312.04927, section 4
            "a question for each of L / 4 pairs",
            _FIRST + 2 * _MQ_KEYS,
            (8, 16, 32, 64),
            (8, 16, 32, 64, 128),
            1 / _MQ_KEYS,
            partial(_multi_query_recall, "multi_query_recall", _MQ_KEYS),
        ),
        RecallTask(
            "multi_query_recall_64",  # arXiv 2312.04927, section 4
            f"a question for each of L / 4 pairs, up to {_MQ_MANY}",
            _FIRST + 2 * _MQ_MANY,
            (16, 32, 64, 128, 256),
            (16, 32, 64, 128, 256),
            1 / _MQ_MANY,
            partial(_multi_query_recall, "multi_query_recall_64", _MQ_MANY),
        ),
        RecallTask(
            "joint_recall",  # arXiv 2507.00449, section 3
            "a key's value depends on its context",
            _FIRST + _JOINT_VALUES + 2 * _JOINT_MOST,
            (22, 44, 74),
            (22, 44, 74, 158),
            1 / _JOINT_VALUES,
            _joint_recall,
        ),
        RecallTask(
            "parity",  # arXiv 2405.04517, section 4.1; 2404.08819
            "odd or even so far, at every position",
            2,
            (16, 32),
            (32, 64, 128, 256),
            0.5,
            _parity,
        ),
        RecallTask(
            "s3_composition",  # arXiv 2404.08819; 2411.12537; 2502.10297
            "what permutations of three things make together, at every position",
            len(_S3),
            (4, 8, 16, 32),
            (8, 16, 32, 64, 128, 256),
            1 / len(_S3),
            _s3_composition,
        ),
        RecallTask(
            "delay",  # arXiv 2110.13985, appendix F
            f"the token of {_DELAY} positions before",
            _FIRST + _DELAY_ALPHABET,
            (64,),
            (64, 128, 256),
            1 / _DELAY_ALPHABET,
            _delay,
        ),
    )
}
"""All tasks by name."""
