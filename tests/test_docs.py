"""The documentation as a site: it builds without a warning, and every public module is on an API
page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))

hooks = pytest.importorskip("hooks", reason="mkdocs is not installed: pip install 'longseq[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or a name that is not there fails."""
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def test_every_page_is_there(site: Path) -> None:
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page
    for name in ("contributing", "changelog", "api/core-mixers", "api/weather"):
        assert (site / f"{name}.html").is_file(), name


def test_the_api_is_made_from_the_docstrings(site: Path) -> None:
    text = (site / "api" / "core-mixers.html").read_text(encoding="utf-8")
    assert "arXiv 2312.00752" in text and 'id="longseq.core.mixers.mamba.Mamba"' in text
    listed = [name for folder in hooks.PACKAGES for name in hooks.modules(folder)]
    assert len(listed) == len(set(listed)) > 100 and not any("._" in name for name in listed)


def test_pages_link_to_no_file_outside_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#?]+)', page.read_text(encoding="utf-8")):
            if "://" not in link and not link.startswith(("mailto:", "data:", "/")):
                assert (page.parent / link).resolve().exists(), (page, link)
