"""Fixtures of the core's tests: a section of the report about toys."""

from pathlib import Path

import pytest

from longseq.core.figures import new_figure, save_png
from longseq.core.report.section import Picture, Section
from longseq.core.results import Score


@pytest.fixture
def odd() -> str:
    """Text that HTML must escape."""
    return '<script>alert("1")</script> & co'


@pytest.fixture
def section(odd):
    """Makes a section with a picture in a folder: (folder, score of the model, lower is better,
    domain)."""

    def make(folder: Path, model: float, lower: bool = True, domain: str = "toys") -> Section:
        folder.mkdir(parents=True, exist_ok=True)
        figure = new_figure(2, 1)
        figure.add_subplot().plot([0, 1])
        save_png(figure, folder / "a.png")
        return Section(
            domain=domain,
            question=f"Which toy? {odd}",
            data="Toys, made up.",
            scores=[
                Score("mean", 0.5, notes={"n": "1"}),
                Score("mamba", model, "model", {"n": odd}),
            ],
            metric="error",
            lower_is_better=lower,
            speed="Fast.",
            seconds=1.4,
            pictures=[Picture(folder / "a.png", odd)],
            files=[folder / "a.png", Path("/elsewhere/b c.csv")],
        )

    return make
