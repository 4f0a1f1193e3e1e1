"""The report as one self-contained HTML page: pictures inside, no script, no network, everything
escaped."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from longseq.core.files import atomic_path, require_file
from longseq.core.report.section import Section
from longseq.core.results import Score, digits

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --model: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --model: #4ac26b; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin: 0; text-transform: capitalize; }
nav a { margin-right: 1rem; }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.2rem; }
.question { font-size: 1.1rem; }
.data, .speed, figcaption, footer { opacity: .75; font-size: .92rem; }
.verdict { border-left: .3rem solid var(--model); background: var(--soft); padding: .6rem .9rem; }
.verdict.lost { border-color: #bc4c00; }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; border-radius: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.model { font-weight: 600; color: var(--model); }
"""


def write_page(path: str | Path, title: str, sections: Sequence[Section], footer: str = "") -> None:
    """Writes the report, whole or not at all.

    Args:
        path: HTML file to write.
        title: heading of the page.
        sections: in the order of the page.
        footer: versions and hardware, in a line.

    Raises:
        DataError: if a picture is missing or empty.
    """
    target = Path(path)
    links = "".join(f'<a href="#{escape(s.domain)}">{escape(s.domain)}</a>' for s in sections)
    body = "".join(_section(section, target.parent) for section in sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<nav>{links}</nav>\n{body}<footer><p>{escape(footer)}</p></footer>\n</body>\n</html>\n"
    )
    with atomic_path(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _section(section: Section, folder: Path) -> str:
    gain = _gain(section)
    lost = " lost" if gain < -section.tie else ""
    figures = "".join(
        f'<figure><img alt="{escape(picture.caption)}" src="{_data_url(picture.path)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
        for picture in section.pictures
    )
    findings = "".join(f"<p>{escape(text)}</p>\n" for text in section.findings)
    files = "".join(f"<li>{_link(file, folder)}</li>" for file in section.files)
    return (
        f'<section id="{escape(section.domain)}">\n<h2>{escape(section.domain)}</h2>\n'
        f'<p class="question">{escape(section.question)}</p>\n'
        f'<p class="verdict{lost}">{escape(section.verdict)}</p>\n{figures}'
        f"{_table(section)}{findings}"
        f'<p class="speed">{escape(section.speed)} The whole took {section.seconds:.0f} s.</p>\n'
        f'<p class="data">{escape(section.data)}</p>\n'
        f"<details><summary>Files written</summary><ul>{files}</ul></details>\n</section>\n"
    )


def _gain(section: Section) -> float:
    values = {
        kind: [s.value for s in section.scores if s.kind == kind] for kind in ("model", "baseline")
    }
    if section.lower_is_better:
        return min(values["baseline"]) - min(values["model"])
    return max(values["model"]) - max(values["baseline"])


def _table(section: Section) -> str:
    columns = list(dict.fromkeys(name for score in section.scores for name in score.notes))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("model", section.metric, *columns))

    def row(score: Score) -> str:
        cells = [
            score.model,
            digits(score.value),
            *(score.notes.get(name, "") for name in columns),
        ]
        mark = ' class="model"' if score.kind == "model" else ""
        return f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"

    ordered = sorted(
        section.scores, key=lambda score: score.value, reverse=not section.lower_is_better
    )
    rows = "".join(row(score) for score in ordered)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>\n'


def _data_url(path: Path) -> str:
    content = require_file(path, "picture").read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _link(file: Path, folder: Path) -> str:
    """A link relative to the page if the file lies below its folder, else the bare path."""
    relative = os.path.relpath(file, folder)
    if relative.startswith(".."):
        return escape(str(file))
    return f'<a href="{escape(quote(relative))}">{escape(relative)}</a>'
