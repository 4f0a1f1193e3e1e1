"""What model and data must share is typed once; a contradiction is refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from longseq.core.domain import load_domain
from longseq.core.errors import ConfigError
from longseq.core.shell.agreement import agree

DOMAIN = load_domain("timeseries")


def added(argv: list[str], *configs: str) -> list[str]:
    """Returns what is added to the arguments."""
    result = agree(DOMAIN, argv, configs)
    assert result[: len(argv)] == argv
    return result[len(argv) :]


def test_a_flag_on_one_side_holds_for_both() -> None:
    assert added(["--data.horizon", "48"]) == ["--model.horizon=48"]
    assert added(["--model.context=24", "--data.horizon=12"]) == ["--data.context=24", "--model.horizon=12"]
    assert added(["--data.horizon=48", "--data.horizon=96"]) == ["--model.horizon=96"]  # the last one counts
    assert added(["--data.horizon=48", "--model.horizon", "48"]) == []
    assert added([]) == []


def test_a_configuration_gives_way_to_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {init_args: {path: x.csv, horizon: 24}}")
    assert added([], str(file)) == ["--model.horizon=24"]
    assert added(["--model.horizon=12"], str(file)) == ["--data.horizon=12"]
    file.write_text("model: SpaceTime\ndata: null")
    assert added(["--data.horizon=12"], str(file)) == ["--model.horizon=12"]


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--model\.horizon 96 and --data\.horizon 48 must agree; give one"):
        agree(DOMAIN, ["--model.horizon=96", "--data.horizon=48"], [])


def test_a_model_that_does_not_know_the_value_is_left_alone() -> None:
    weather = load_domain("weather")
    assert agree(weather, ["--data.context=3"], []) == ["--data.context=3"]  # no model of scenarios has one
    video = ["--model=VideoForecaster", "--data=MovingDigits", "--data.context=3"]
    assert agree(weather, video, []) == [*video, "--model.context=3"]
