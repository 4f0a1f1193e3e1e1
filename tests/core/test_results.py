"""Score tables and verdicts."""

import io

import pytest

from longseq.core.results import Score, print_table, verdict

BASELINES = [Score("uniform", 2.0), Score("order-5", 1.94)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.90, "mamba beats the best baseline, order-5"),
        (1.97, "does not beat"),
        (1.9401, "is level with"),
    ],
)
def test_the_verdict_falls_either_way(value: float, words: str) -> None:
    text = verdict([*BASELINES, Score("mamba", value, "model")], "bits per base", tie=5e-4)
    assert words in text and f"{value:.4f} against 1.9400" in text


def test_higher_can_be_better() -> None:
    scores = [Score("pixels", 0.84), Score("vim", 0.90, "model")]
    assert "vim beats" in verdict(scores, "accuracy", lower_is_better=False)


def test_the_table_has_every_row_and_note_with_the_best_last() -> None:
    out = io.StringIO()
    scores = [Score("mamba", 1.9, "model", {"parameters": "352,000"}), *BASELINES]
    print_table(scores, "bits per base", "held out", file=out)
    text = out.getvalue()
    assert text.index("uniform") < text.index("order-5") < text.index("mamba")
    assert "352,000" in text and "1.9400" in text and "held out" in text


def test_names_of_files_are_shown_as_they_are() -> None:
    out = io.StringIO()
    scores = [
        Score("run[red].csv", 1.0, "model", {"from": "data[/x].csv"}),
        Score("\x1b[31mx", 2.0),
    ]
    print_table(scores, "mse", "a [b]\x1b[0m", file=out)
    assert "run[red].csv" in out.getvalue() and "data[/x].csv" in out.getvalue()
    assert "a [b]" in out.getvalue() and "\x1b" not in out.getvalue()
