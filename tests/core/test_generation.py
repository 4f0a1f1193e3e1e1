"""Generation: exact for ragged prompts, beams as transformers', sampling by its distribution."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longseq.core import LanguageModel
from longseq.core.errors import ConfigError, DataError
from longseq.core.generation import Sampling, generate

BEAMS = json.loads((Path(__file__).parent / "fixtures" / "beams.json").read_text())
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9], [7, 9, 3, 2, 3]]


def lm(mixer: Any = "mamba", **settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(16, 16, 2, mixer, tie_embeddings=False, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


MIXERS: dict[str, Any] = {
    "mamba": "mamba",
    "attention": ["mamba2", ["attention", {"n_heads": 2}]],
    "window": [["local_attention", {"n_heads": 2, "window": 4}], "rg_lru"],
    "hyena": [["hyena", {"l_max": 40, "filter_order": 8}]],
    "xlstm": ["mlstm", "slstm"],
}


def by_hand(model: LanguageModel, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens, the whole sequence run anew for each."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0][0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", MIXERS)
def test_ragged_prompts_are_continued_as_alone(name: str) -> None:
    model = lm(MIXERS[name])
    found = model.generate(PROMPTS, 12)
    assert [one.tokens for one in found] == [by_hand(model, prompt, 12) for prompt in PROMPTS]
    assert [one.prompt for one in found] == [0, 1, 2, 3]


def test_long_prompts_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lm(["mamba", ["local_attention", {"n_heads": 2, "window": 4}]])
    expected = model.generate(PROMPTS[2], 8)
    monkeypatch.setattr("longseq.core.generation.decoding._CHUNK", 3)
    assert model.generate(PROMPTS[2], 8) == expected


def test_stop_tokens_end_a_row_and_leave_the_others(tmp_path: Path) -> None:
    model = lm(MIXERS["attention"])
    free = [one.tokens for one in model.generate(PROMPTS, 12)]
    stop = free[0][4]
    for one, tokens in zip(model.generate(PROMPTS, 12, stop_tokens=[stop]), free, strict=True):
        end = tokens.index(stop) + 1 if stop in tokens else 12
        assert one.tokens == tokens[:end] and one.stopped == (stop in tokens)


def test_the_callback_sees_every_token_in_order() -> None:
    model, seen = lm(), []
    found = model.generate(PROMPTS, 5, callback=lambda row, token: seen.append((row, token)))
    for row, one in enumerate(found):
        assert [token for r, token in seen if r == row] == one.tokens
    assert [row for row, _ in seen[:4]] == [0, 1, 2, 3]


def test_a_sample_depends_on_seed_prompt_and_number_alone() -> None:
    model = lm()
    options = {"temperature": 1.5, "num_return_sequences": 3, "seed": 7}
    found = model.generate(PROMPTS, 8, **options)
    assert model.generate(PROMPTS, 8, **options) == found
    assert [one.prompt for one in found] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert model.generate(PROMPTS[0], 8, **options) == found[:3]
    assert len({tuple(one.tokens) for one in found}) > 8
    stops = found[0].tokens[:1]  # the first row ends at once, and changes nothing elsewhere
    for one, other in zip(found, model.generate(PROMPTS, 8, stop_tokens=stops, **options)):
        assert other.tokens == one.tokens[: len(other.tokens)]


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]]).repeat(4000, 1)
    sampling = Sampling(temperature=0.7, top_k=3)
    streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    count = Counter(sampling.choose(logits, [set()] * 4000, streams).tolist())
    expected = (logits[0, :3] / 0.7).softmax(0)
    assert set(count) == {0, 1, 2}
    for token in range(3):  # 5 standard deviations
        p = expected[token].item()
        assert abs(count[token] / 4000 - p) < 5 * (p * (1 - p) / 4000) ** 0.5


def kept(sampling: Sampling, logits: Tensor) -> list[int]:
    return sampling.filtered(logits[None])[0].isfinite().nonzero().flatten().tolist()


def test_filters() -> None:
    p = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    logits = p.log()
    assert kept(Sampling(1.0), logits) == [0, 1, 2, 3, 4]
    assert kept(Sampling(1.0, top_k=2), logits) == [0, 1]
    assert kept(Sampling(1.0, top_k=9), logits) == [0, 1, 2, 3, 4]
    assert kept(Sampling(1.0, top_p=0.7), logits) == [0, 1]
    assert kept(Sampling(1.0, top_p=0.8), logits) == [0, 1, 2]
    assert kept(Sampling(1.0, top_p=0.0), logits) == [0]
    assert kept(Sampling(1.0, min_p=0.2), logits) == [0, 1, 2]
    # After the temperature, and each on what the one before has left.
    assert kept(Sampling(0.5, min_p=0.2), logits) == [0, 1]
    assert kept(Sampling(1.0, top_k=3, top_p=0.8), logits) == [0, 1]


def test_logits_that_are_nan_are_refused() -> None:
    model = lm()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    for options in ({}, {"temperature": 1.0}, {"num_beams": 2}):
        with pytest.raises(DataError, match="NaN"):
            model.generate([1, 2], 3, **options)


@pytest.mark.parametrize(
    ("named", "options"),
    [
        ("temperature", {"temperature": "1"}),
        ("temperature", {"temperature": float("inf")}),
        ("top_k", {"temperature": 1.0, "top_k": 2.5}),
        ("repetition_penalty", {"repetition_penalty": float("nan")}),
        ("seed", {"seed": "a"}),
        ("callback", {"callback": 3}),
        ("length_penalty", {"num_beams": 2, "length_penalty": float("nan")}),
        ("diversity_penalty", {"num_beams": 2, "diversity_penalty": float("nan")}),
        ("length_penalty", {"num_beams": 2, "length_penalty": 1e4}),
        ("length_penalty", {"num_beams": 2, "length_penalty": -1e4}),
        ("early_stopping", {"num_beams": 2, "early_stopping": "never"}),
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("max_new_tokens", {"max_new_tokens": 2.0}),
        ("num_beams", {"num_beams": True}),
    ],
)
def test_settings_that_are_no_numbers_are_named(named: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=named):
        lm().generate([1], **options)


def test_almost_no_temperature_is_greedy() -> None:
    model = lm()
    greedy = model.generate([3], 6)[0].tokens
    for temperature in (1e-40, 1e-46, 5e-324):  # the last two are 0 in float32
        assert model.generate([3], 6, temperature=temperature)[0].tokens == greedy


def test_integers_of_any_type() -> None:
    model, two = lm(), np.int64(2)
    found = model.generate([3], two, num_beams=two, num_return_sequences=two, seed=two)
    assert [len(one.tokens) for one in found] == [2, 2]


def test_beams_where_there_are_few_continuations() -> None:
    model = lm()
    every = model.generate([3], 1, num_beams=20, num_return_sequences=20)
    assert sorted(one.tokens[0] for one in every) == list(range(16))
    ended = model.generate([3], 4, num_beams=3, num_return_sequences=3, stop_tokens=range(16))
    assert [len(one.tokens) for one in ended] == [1, 1, 1] and all(one.stopped for one in ended)


def test_kinds_of_prompts_and_stops() -> None:
    model = lm()
    expected = model.generate([3, 1], 6)[0].tokens
    for prompts in (torch.tensor([3, 1]), np.array([3, 1]), np.array([[3, 1]], "i2"), ((3, 1),)):
        assert model.generate(prompts, 6)[0].tokens == expected
    stop = expected[-1]
    for stops in (stop, [stop], np.array([stop]), torch.tensor([stop])):
        (found,) = model.generate([3, 1], 6, stop_tokens=stops)
        assert found.stopped and found.tokens == expected[: expected.index(stop) + 1]
    assert model.generate([]) == [] == model.generate(torch.zeros(0, 3, dtype=torch.long))
    for empty in ([[]], torch.zeros(0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)):
        with pytest.raises(ConfigError, match="prompt 0 is empty"):
            model.generate(empty)
    for wrong in ("ab", [0.5], torch.tensor([0.5]), [True], torch.tensor(3), [1, [2]], None):
        with pytest.raises(ConfigError, match="token id"):
            model.generate(wrong)
    for stops in (["a"], "a", 0.5):
        with pytest.raises(ConfigError, match="stop_tokens holds"):
            model.generate([3, 1], 6, stop_tokens=stops)


def test_repetition_penalty() -> None:
    scores = torch.tensor([[2.0, -2.0, 1.0]])
    found = Sampling(repetition_penalty=2.0).penalise(scores, [{0, 1}])
    assert found.tolist() == [[1.0, -4.0, 1.0]] and scores.tolist() == [[2.0, -2.0, 1.0]]
    model = lm()
    free = model.generate(PROMPTS, 12)
    new = model.generate(PROMPTS, 12, repetition_penalty=100.0)
    assert sum(len(set(one.tokens)) for one in new) > sum(len(set(one.tokens)) for one in free)


@pytest.mark.parametrize("case", BEAMS, ids=lambda case: json.dumps(case["settings"]))
def test_beams_are_those_of_transformers(case: dict[str, Any], tmp_path: Path) -> None:
    """Numbers of transformers 4.53.3, the last version with group beam search, for the case
    "mamba-untied" of the families."""
    model = mamba_untied(tmp_path)
    found = model.generate(
        [5, 17, 3, 60, 8, 8, 21], 16, stop_tokens=case["stop_tokens"], **case["settings"]
    )
    assert len(found) == len(case["scores"])
    for one, tokens, score in zip(found, case["tokens"], case["scores"]):
        length = len(one.tokens) - one.stopped  # transformers writes one stop token for all
        assert one.tokens[:length] == tokens[:length]
        assert one.score == pytest.approx(score, abs=1e-4)


def mamba_untied(folder: Path) -> LanguageModel:
    import importlib.util

    file = Path(__file__).parent / "test_families.py"
    spec = importlib.util.spec_from_file_location("families_of_tests", file)
    assert spec is not None and spec.loader is not None
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    return LanguageModel.from_pretrained(
        families.write(folder / "model", families.cases()["mamba-untied"])
    )


def test_beam_search_finds_the_best_there_is() -> None:
    model = lm()
    with torch.no_grad():
        best: list[tuple[float, list[int]]] = []
        first = model(torch.tensor([PROMPTS[0]]))[0][0, -1].log_softmax(-1)
        for a in range(16):
            second = model(torch.tensor([[*PROMPTS[0], a]]))[0][0, -1].log_softmax(-1)
            best += [((first[a] + second[b]).item() / 2, [a, b]) for b in range(16)]
    best.sort(reverse=True)
    found = model.generate(PROMPTS[0], 2, num_beams=16, num_return_sequences=3)
    assert [one.tokens for one in found] == [tokens for _, tokens in best[:3]]
    assert [one.score for one in found] == pytest.approx([score for score, _ in best[:3]], abs=1e-5)


def test_groups_differ() -> None:
    model = lm()
    same = model.generate(PROMPTS[0], 1, num_beams=4, num_return_sequences=4)
    assert len({tuple(one.tokens) for one in same}) == 4
    found = model.generate(
        PROMPTS[0],
        6,
        num_beams=4,
        num_beam_groups=4,
        diversity_penalty=50.0,
        num_return_sequences=4,
    )
    for position in range(6):
        assert len({one.tokens[position] for one in found}) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0, "temperature": 1.0}, "top_k"),
        ({"top_p": 1.2, "temperature": 1.0}, "top_p"),
        ({"top_k": 4}, "need a temperature"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"num_return_sequences": 2}, "would be the same"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "must divide"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty"),
        ({"num_beam_groups": 2}, "need num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most num_beams"),
        ({"num_beams": 2, "temperature": 1.0}, "does not sample"),
        ({"num_beams": 2, "callback": print}, "no callback"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lm().generate(PROMPTS, **settings)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1, 16]], "outside the vocabulary of 16"),
        ([-1], "outside"),
        ([1.5], "no token id"),
        (["a"], "no token id"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lm().generate(prompts)


@pytest.mark.parametrize("stop", [16, -1])
@pytest.mark.parametrize("beams", [1, 2])
def test_stop_tokens_outside_the_vocabulary_are_refused(stop: int, beams: int) -> None:
    words = f"stop_tokens holds {stop}, outside the vocabulary of 16"
    with pytest.raises(ConfigError, match=words):
        lm().generate(PROMPTS, stop_tokens=[1, stop], num_beams=beams)


def test_prompts_as_tensors_and_none_at_all() -> None:
    model = lm()
    expected = model.generate(PROMPTS[0], 3)
    assert model.generate(torch.tensor(PROMPTS[0]), 3) == expected
    assert model.generate(torch.tensor([PROMPTS[0]]), 3) == expected
    assert model.generate([], 3) == []


def test_training_mode_and_gradients_are_as_before() -> None:
    model = lm(dropout=0.5).train()
    quiet = model.generate(PROMPTS[0], 6)
    assert model.training and quiet == model.generate(PROMPTS[0], 6)
    model.backbone.eval()  # frozen inside a training
    modes = [part.training for part in model.modules()]
    model.generate(PROMPTS[0], 2)
    assert modes == [part.training for part in model.modules()] and set(modes) == {True, False}
    model(torch.tensor([PROMPTS[0]]))[0].sum().backward()


def test_a_bidirectional_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="only causal"):
        generate(lm("bidirectional"), [1])


def test_the_finite_state_does_not_grow() -> None:
    model = lm(["mamba", "rg_lru"])
    sizes = []
    real = model.step

    def step(ids: Tensor, states: Any) -> Any:
        sizes.append(sum(value.numel() for state in states for value in state.values()))
        return real(ids, states)

    model.step = step  # type: ignore[method-assign]
    model.generate(PROMPTS[0], 20)
    assert len(set(sizes)) == 1 and len(sizes) == 19
