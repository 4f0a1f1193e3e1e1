"""The page of a scan: small, safe against hostile names, worst first, readable on a phone."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from longseq.audio.calibration import Calibration
from longseq.audio.page import evidence_plot, timeline, write_page
from longseq.audio.predict import safe_cell
from longseq.audio.scoring import FileScore, shown_name

BAND = Calibration(1.0, 0.0, 0.3, 0.8, 100)
VERDICTS = ["synthetic", "uncertain", "no sign", "unscorable", "unreadable"]
HOSTILE = [
    "<img src=x onerror=alert(1)>.mp3",
    "</script><script>alert(1)</script>.mp3",
    "\"onclick='x'.mp3",
    "javascript:alert(1)",
    "名前 {0} %s ${x}.flac",
    "a" * 240 + ".wav",
    "=HYPERLINK(1).wav",
]


def score(number: int, name: str | None = None, parts: int = 40) -> FileScore:
    verdict = VERDICTS[number % 5]
    scored = verdict in ("synthetic", "uncertain", "no sign")
    p = {"synthetic": 0.95, "uncertain": 0.5, "no sign": 0.1}.get(verdict)
    rng = np.random.default_rng(number)
    return FileScore(
        name or f"album {number // 12}/{number % 12:02d} a song of the usual length.mp3",
        20.0 * parts,
        p,
        verdict,
        f"{p} > 0.80; 7 of {parts} segments alone say so; lines at equal distances, as a decoder's "
        "upsampling leaves them (family unknown): every 2756.2 Hz, clearest at 5512 Hz",
        [(20.0 * i, 20.0 * i + 20, float(rng.random())) for i in range(parts)] if scored else [],
        {"artist": "Somebody <b>", "title": "Something & more"},
        {"lines": [[2756.25 * n, 9.0] for n in range(1, 8)], "words": "lines"} if scored else {},
    )


def page(path: Path, items: list[FileScore]) -> str:
    pairs = [(path.parent / "music" / item.file, item) for item in items]
    write_page(path, pairs, BAND, "7 files.", "What it <knows>.", "made by a test")
    return path.read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


def test_two_thousand_files_are_under_two_megabytes(tmp_path: Path) -> None:
    text = page(tmp_path / "a.html", [score(i, parts=200) for i in range(2000)])
    assert len(text.encode()) < 2_000_000
    assert text.count("<tr data-v=") == 2000 and "Somebody &lt;b&gt; – Something &amp; more" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = [*HOSTILE, os.fsdecode(b"caf\xe9\n\x1b[31m.wav")]
    pairs = [(tmp_path / name, score(i, shown_name(name))) for i, name in enumerate(names)]
    write_page(tmp_path / "a.html", pairs, BAND, "8 files.", "What it <knows>.", "by a test")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    tags = Tags(text).found
    assert [tag for tag, _ in tags].count("script") == 1 and "img" not in dict(tags)
    assert not [key for _, attrs in tags for key in attrs if key.startswith("on")]
    for _, attrs in tags:
        for key in ("src", "href", "data-src"):
            assert ":" not in (attrs.get(key) or ""), attrs
    assert r"caf\xe9\x0a\x1b[31m.wav" in text and "caf%E9%0A" in text
    # The policy lets this one script run and nothing load from a network.
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script is not None
    checksum = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv"))
    assert policy is not None and f"script-src 'sha256-{checksum}'" in policy
    assert "default-src 'none'" in policy and "http" not in policy


def test_cells_that_look_like_formulas_are_escaped() -> None:
    for text in ("=1+1", "+1", "-1", "@a", "\tx"):
        assert safe_cell(text) == f"'{text}"
    assert safe_cell("a=1") == "a=1" and safe_cell("") == ""


def test_the_timeline_has_the_colour_of_the_verdict_and_forty_steps() -> None:
    assert "#c0392b" in timeline(score(0), BAND) and "#c0392b" not in timeline(score(1), BAND)
    assert timeline(score(0, parts=4000), BAND).count("V") <= 43
    assert timeline(score(3), BAND) == "" and evidence_plot(score(3)) == ""
    assert evidence_plot(score(0)).count("M") == 7 and evidence_plot(score(2)) == ""


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_screenshots(width: int, tmp_path: Path) -> None:
    import matplotlib.image

    page(tmp_path / "a.html", [score(i, name) for i, name in enumerate(HOSTILE)])
    shot = tmp_path / "shot.png"
    argv = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    argv += [f"--window-size={width},1600", f"--screenshot={shot}", f"file://{tmp_path / 'a.html'}"]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    image = matplotlib.image.imread(shot)
    assert image.shape[1] == width and image[..., :3].std() > 0.05
    # Nothing runs out of the page to the right: its last columns are empty.
    assert (image[:, -6:, :3] > 0.97).all()
