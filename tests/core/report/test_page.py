"""The report page: self-contained, escaped, honest about lost comparisons, and readable in a
browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from longseq.core.errors import DataError
from longseq.core.report.page import write_page

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class _Reader(HTMLParser):
    """Collects tags with attributes, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_shows(
    section, odd, tmp_path: Path
) -> None:
    page = tmp_path / "index.html"
    write_page(page, f"Title {odd}", [section(tmp_path / "toys", 0.4)], f"footer {odd}")
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    sources = [attrs.get("src") for tag, attrs in reader.tags if tag in ("img", "iframe", "link")]
    assert sources and all(
        source and source.startswith("data:image/png;base64,") for source in sources
    )
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page.read_text(encoding="utf-8"))
    assert reader.text.count(odd) >= 4
    assert [attrs["href"] for tag, attrs in reader.tags if tag == "a"] == ["#toys", "toys/a.png"]
    assert "/elsewhere/b c.csv" in reader.text


@pytest.mark.parametrize(
    ("model", "lower", "lost"),
    [(0.4, True, False), (0.6, True, True), (0.4, False, True), (0.6, False, False)],
)
def test_the_verdict_is_shown_whichever_way_it_falls(
    section, tmp_path: Path, model: float, lower: bool, lost: bool
) -> None:
    write_page(tmp_path / "index.html", "t", [section(tmp_path / "toys", model, lower)])
    reader = read(tmp_path / "index.html")
    (kind,) = (
        attrs["class"]
        for tag, attrs in reader.tags
        if (attrs.get("class") or "").startswith("verdict")
    )
    assert kind == ("verdict lost" if lost else "verdict")
    assert ("does not beat" if lost else "beats") in reader.text


def test_a_missing_picture_leaves_the_earlier_page(section, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("earlier")
    made = section(tmp_path / "toys", 0.4)
    (tmp_path / "toys/a.png").unlink()
    with pytest.raises(DataError, match="no such picture"):
        write_page(page, "t", [made])
    assert page.read_text() == "earlier" and sorted(p.name for p in tmp_path.iterdir()) == [
        "index.html",
        "toys",
    ]


@pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"
)
def test_a_browser_shows_sections_and_pictures(section, tmp_path: Path) -> None:
    made = [section(tmp_path / name, 0.4, domain=name) for name in ("toys", "games")]
    page = tmp_path / "index.html"
    write_page(page, "Report", made)
    # A probe in a copy: counts what was laid out, with widths, as the browser sees it.
    probe = """<script>onload = () => {
    const shown = [...document.images].filter(i => i.naturalWidth > 50);
      document.title = [shown.length, document.querySelectorAll('section').length,
      document.body.scrollWidth <= innerWidth].join(' '); }</script></body>"""
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=4000",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    assert "<title>2 2 true</title>" in done.stdout, done.stderr[-500:]
