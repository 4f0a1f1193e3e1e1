"""The harness that stops commands: what it counts as lost, left behind or different."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from longseq.bench import interrupt
from longseq.bench.interrupt import Command, Tally
from longseq.bench.interrupt_files import files, newest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def play(monkeypatch: pytest.MonkeyPatch, body: str, tmp_path: Path, signum: int) -> Tally:
    """One trial of a command whose body is given, with ``to`` for its folder."""

    def main(argv: list[str]) -> int:
        exec(body, {"to": Path(argv[0]), "torch": torch})
        return 0

    monkeypatch.setattr("longseq.core.shell.cli.main", main)
    one = Command("made", lambda to: [str(to)], ("out",))
    whole, to, tally = tmp_path / "whole", tmp_path / "to", Tally()
    whole.mkdir()
    to.mkdir()
    first = interrupt.run(one.argv(whole))
    assert first.status == 0, first.text
    interrupt.trial(one, whole, max(first.cpu, 0.1), signum, random.Random(0), to, tally)
    return tally


BUSY = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def test_a_careful_command_loses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = BUSY + "(to / 'new').write_text('x')\n(to / 'new').replace(to / 'out')"
    tally = play(monkeypatch, body, tmp_path, signal.SIGKILL)
    assert tally.trials == 1 and not tally.counts, tally.notes


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("(to / 'out').write_text('half')\n" + BUSY + "(to / 'out').write_text('x')", "outputs"),
        (
            "import os\n(to / f'.{os.getpid()}').touch()\n" + BUSY + "(to / 'out').write_text('x')",
            "leftovers",
        ),
        (BUSY + "import os\n(to / 'out').write_text(str(os.getpid()))", "bits"),
    ],
)
def test_a_careless_one_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, kind: str
) -> None:
    tally = play(monkeypatch, body, tmp_path, signal.SIGKILL)
    assert tally.trials == 1 and tally.counts[kind], (tally.counts, tally.notes)


def test_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(argv: list[str]) -> int:
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.zeros(1)
        for _ in range(int(argv[0])):
            torch.optim.SGD([weight], 0.1).step()
        return 3

    monkeypatch.setattr("longseq.core.shell.cli.main", main)
    ended = interrupt.run(["7"])
    assert (ended.status, ended.steps, ended.sent) == (3, 7, False)


def test_of_several_versions_the_newest_counts_and_numbers_are_no_leftovers(tmp_path: Path) -> None:
    name = "fit/version_*/scores.csv"
    assert newest(tmp_path, name) == tmp_path / "fit" / "version_0" / "scores.csv"
    for number in (0, 2, 10):
        (tmp_path / "fit" / f"version_{number}").mkdir(parents=True)
        (tmp_path / "fit" / f"version_{number}" / "scores.csv").touch()
    assert newest(tmp_path, name).parent.name == "version_10"
    assert newest(tmp_path, "out") == tmp_path / "out"
    assert files(tmp_path) == {name}
    (tmp_path / "fit" / "version_2" / ".scores.csv.tmp").touch()
    assert files(tmp_path) == {name, "fit/version_*/.scores.csv.tmp"}
