"""Mistakes in options end in one line that names what was typed and what is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from longseq.core.domain import load_domain
from longseq.core.shell.cli import main
from longseq.core.shell.messages import explain

FIT = ["timeseries", "fit", "--config=mixer_forecaster", "--data.path=electricity_demand"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        # The configuration has a value of its own, and is not to blame.
        (["--model.lr=fast"], "--model.lr: expected float, got fast"),
        (["--trainer.precision=17"], "--trainer.precision: expected 64 or 32 or 16 or "),
        (
            ["--model.optimizer_kwargs=momentum=0.9"],
            "--model.optimizer_kwargs: expected a mapping in braces, '{name: value}', got momentum",
        ),
        (["--model=torch.nn.Linear"], "--model: torch.nn.Linear is no BaseTask"),
        (["--trainer.max_steps=0"], "a training needs at least one step (max_steps), got 0"),
        (["--model.loss=torch.nn.L1Los"], "torch.nn has no L1Los; did you mean torch.nn.L1Loss?"),
        (["--model.optimizer=SGD"], "a class path (torch's is torch.optim.SGD)"),
        (["--horizon=48"], "--horizon: no such option; did you mean --data.horizon?"),
        (["--max_steps=48"], "--max_steps: no such option; did you mean --trainer.max_steps?"),
        (["mixer_forecaster"], "a configuration is given by --config mixer_forecaster"),
    ],
)
def test_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--trainer.logger=false", *argv]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert says in line and ".yaml" not in line


def test_an_empty_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert main(["timeseries", "fit", f"--config={file}"]) == 2
    assert f"error: {file}: holds no settings" in capsys.readouterr().err


def test_a_configuration_is_blamed_for_what_it_has(tmp_path: Path) -> None:
    file = f"{tmp_path}/mine.yaml"
    with open(file, "w", encoding="utf-8") as stream:
        stream.write("model: {init_args: {lr: fast}}")
    text = 'Parser key "model":\n  Parser key "lr":\n  Expected a <class \'float\'>. Got value: '
    domain = load_domain("timeseries")
    assert explain(f"{text}fast", domain, "fit", [], [file]).startswith(f"{file}: model.lr: ")
    typed = ["--model.init_args.lr=slow"]
    assert explain(f"{text}slow", domain, "fit", typed, [file]).startswith("--model.lr: ")
