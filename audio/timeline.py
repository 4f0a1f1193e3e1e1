"""One HTML page of a scan: a table with a timeline a file; self-contained, everything escaped, no
network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longseq.audio.calibration import NO_SIGN, SYNTHETIC, UNCERTAIN, Calibration
from longseq.audio.scoring import UNREADABLE, FileScore

_COLOURS = {SYNTHETIC: "#c0392b", UNCERTAIN: "#b08900", NO_SIGN: "#2e7d32", UNREADABLE: "#555"}
_WIDTH, _HEIGHT = 600, 48
# Bars a timeline at most; of longer songs neighbouring segments are averaged, so that the page
# stays small.
_MOST_BARS = 400

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>longseq audio scan</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; vertical-align: top; padding: .5rem .7rem;
  border-bottom: 1px solid #ddd; }}
td.file {{ overflow-wrap: anywhere; max-width: 16rem; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.reason {{ color: #555; font-size: 13px; }}
.verdict {{ font-weight: 600; white-space: nowrap; }}
svg {{ width: 100%; max-width: {width}px; height: {height}px; background: #f4f4f4;
  display: block; }}
</style></head><body>
<h1>Is it synthetic?</h1>
<p>{summary}</p>
<p>{about}</p>
<table><thead><tr><th>file</th><th>duration</th><th>probability</th><th>verdict</th><th>timeline</th></tr>
</thead><tbody>
{rows}
</tbody></table>
<p class="reason">{footer}</p>
</body></html>
"""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if seconds >= 1 else f"{seconds:.4g} s"


def _bars(item: FileScore) -> list[tuple[float, float, float]]:
    """Returns (start, end, probability) of at most ``_MOST_BARS`` stretches of a file."""
    size = -(-len(item.segments) // _MOST_BARS) or 1
    found = []
    for i in range(0, len(item.segments), size):
        parts, values = item.segments[i : i + size], item.segment_probabilities[i : i + size]
        found.append((parts[0].start, parts[-1].end, sum(values) / len(values)))
    return found


def timeline(item: FileScore, calibration: Calibration) -> str:
    """Returns an SVG: a bar a segment, as high as its probability, the uncertain band shaded.

    Args:
        item: a scored file.
        calibration: for the band.
    """
    if not item.segments:
        return ""
    scale = _WIDTH / max(item.segments[-1].end, 1e-9)
    top, bottom = _HEIGHT * (1 - calibration.high), _HEIGHT * (1 - calibration.low)
    shapes = [
        f'<rect x="0" y="{top:.1f}" width="{_WIDTH}" height="{max(0.0, bottom - top):.1f}" '
        f'fill="#e4e4e4"/>'
    ]
    for start, end, p in _bars(item):
        height = max(1.0, p * _HEIGHT)
        tip = f"{_clock(start)} to {_clock(end)}: {p:.2f}"
        shapes.append(
            f'<rect x="{start * scale:.1f}" y="{_HEIGHT - height:.1f}" '
            f'width="{max(0.5, (end - start) * scale - 0.6):.1f}" height="{height:.1f}" '
            f'fill="{_COLOURS[calibration.verdict(p)]}"><title>{tip}</title></rect>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="probability over time">{"".join(shapes)}</svg>'
    )


def page(
    scores: Sequence[FileScore], calibration: Calibration, summary: str, about: str, footer: str
) -> str:
    """Returns the page.

    Args:
        scores: of the files, in order.
        calibration: of the detector.
        summary: counts and speed, in words.
        about: what the detector was trained on and misses, in words.
        footer: how it was made, in words.
    """
    rows = []
    for item in scores:
        probability = "–" if item.probability is None else f"{item.probability:.2f}"
        rows.append(
            f'<tr><td class="file">{escape(item.file)}</td><td '
            f'class="number">{_clock(item.seconds)}</td><td class="number">{probability}</td>'
            f'<td><span class="verdict" style="color: '
            f'{_COLOURS[item.verdict]}">{escape(item.verdict)}</span><div '
            f'class="reason">{escape(item.reason)}</div></td>'
            f"<td>{timeline(item, calibration)}</td></tr>"
        )
    return _PAGE.format(
        width=_WIDTH,
        height=_HEIGHT,
        summary=escape(summary),
        about=escape(about),
        footer=escape(footer),
        rows="\n".join(rows),
    )
