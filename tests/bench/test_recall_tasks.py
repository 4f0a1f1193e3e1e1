"""Recall tasks: every label against a solver that reads the tokens from left to right and nothing
else."""

from __future__ import annotations

import itertools

import pytest

from longseq.bench.recall_tasks import IGNORE, TASKS, get_task
from longseq.core.errors import ConfigError

FILLER, MARK = 0, 1


def solve_selective_copying(tokens: list[int]) -> list[int]:
    content, labels = [], []
    for token in tokens:
        if token > MARK:
            content.append(token)
        labels.append(content.pop(0) if token == MARK else IGNORE)
    assert not content, "everything is asked for"
    return labels


def solve_induction_heads(tokens: list[int]) -> list[int]:
    first = tokens.index(MARK)
    assert [t for t, token in enumerate(tokens) if token == MARK] == [first, len(tokens) - 1]
    return [IGNORE] * (len(tokens) - 1) + [tokens[first + 1]]


def solve_associative_recall(tokens: list[int]) -> list[int]:
    pairs = [token for token in tokens[:-2] if token != FILLER]
    known = dict(zip(pairs[::2], pairs[1::2]))
    assert tokens[-2] == MARK
    assert all(known[key] == value for key, value in zip(pairs[::2], pairs[1::2])), (
        "one value a key"
    )
    return [IGNORE] * (len(tokens) - 1) + [known[tokens[-1]]]


def solve_multi_query_recall(tokens: list[int]) -> list[int]:
    known: dict[int, int] = {}
    labels, is_value = [], False
    for token, following in zip(tokens, [*tokens[1:], FILLER]):
        label = IGNORE
        if is_value or token == FILLER:
            is_value = False
        elif token in known:
            label = known.pop(token)
        else:
            known[token], is_value = following, True
        labels.append(label)
    assert not known, "every key is asked for once"
    return labels


def solve_s3_composition(tokens: list[int]) -> list[int]:
    permutations = sorted(itertools.permutations(range(3)))
    state, labels = (0, 1, 2), []
    for token in tokens:
        state = tuple(state[i] for i in permutations[token])
        labels.append(permutations.index(state))
    return labels


def solve_joint_recall(tokens: list[int]) -> list[int]:
    known: dict[tuple[int, int], int] = {}
    labels, context, key, asked = [], -1, -1, False
    for token in tokens:
        label = IGNORE
        if token == MARK:
            asked = True
        elif token >= 2 + 16 + 16:
            context = token
        elif token >= 2 + 16:
            key = token
            if asked:
                label = known.pop((context, key))
        elif token != FILLER and not asked:
            assert (context, key) not in known
            known[context, key] = token
        labels.append(label)
    assert not known, "every pair is asked for once"
    return labels


def solve_parity(tokens: list[int]) -> list[int]:
    labels, odd = [], 0
    for token in tokens:
        odd ^= token
        labels.append(odd)
    return labels


def solve_delay(tokens: list[int]) -> list[int]:
    return [tokens[t - 16] if t >= 16 else IGNORE for t in range(len(tokens))]


solve_multi_query_recall_64 = solve_multi_query_recall
SOLVERS = {
    name.removeprefix("solve_"): f for name, f in globals().items() if name.startswith("solve_")
}


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_what_a_solver_finds(name: str) -> None:
    task = TASKS[name]
    for length in {*task.train_lengths, *task.test_lengths, 37, 131}:
        tokens, labels = task.sample(5, length, seed=length)
        assert tokens.shape == labels.shape == (5, length)
        assert tokens.min() >= 0
        assert max(tokens.max(), labels.max()) < task.vocabulary
        for row, expected in zip(tokens.tolist(), labels.tolist()):
            assert SOLVERS[name](row) == expected


@pytest.mark.parametrize("name", TASKS)
def test_draws_depend_on_the_seed_alone(name: str) -> None:
    task = TASKS[name]
    length = task.train_lengths[-1]
    first, again, other = (task.sample(4, length, seed=seed) for seed in (3, 3, 4))
    assert first.tokens.equal(again.tokens)
    assert first.labels.equal(again.labels)
    assert not first.tokens.equal(other.tokens)


@pytest.mark.parametrize("name", TASKS)
def test_answers_cannot_be_guessed(name: str) -> None:
    """The most frequent answer is about as frequent as chance says."""
    task = TASKS[name]
    labels = task.sample(400, task.train_lengths[-1], seed=0).labels
    counts = labels[labels != IGNORE].bincount().float()
    assert counts.max() / counts.sum() < 1.5 * task.chance


FROZEN = {
    "selective_copying": -8307,
    "induction_heads": -9277,
    "associative_recall": -18851,
    "multi_query_recall": -1478,
    "multi_query_recall_64": -2357,
    "joint_recall": -5295,
    "parity": 21,
    "s3_composition": 27,
    "delay": -3999,
}


def test_draws_do_not_change_between_versions() -> None:
    sums = {
        name: int(task.sample(3, task.train_lengths[0], seed=11).labels.sum())
        for name, task in TASKS.items()
    }
    assert sums == FROZEN


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'delay'"):
        get_task("dealy")
    for name in (
        "selective_copying",
        "induction_heads",
        "associative_recall",
        "joint_recall",
        "delay",
    ):
        with pytest.raises(ConfigError, match=f"{name} needs a length"):
            get_task(name).sample(1, 2, seed=0)
    with pytest.raises(ConfigError, match="32 keys"):
        get_task("multi_query_recall").sample(1, 1000, seed=0)
    with pytest.raises(ConfigError, match="multi_query_recall_64 has 64 keys"):
        get_task("multi_query_recall_64").sample(1, 260, seed=0)
