"""One HTML page of a scan: worst first, to be sorted, filtered and listened to; self-contained, no
network, every name escaped."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

from longseq.audio.calibration import (
    NO_SIGN,
    SYNTHETIC,
    UNCERTAIN,
    UNREADABLE,
    UNSCORABLE,
    Calibration,
)
from longseq.audio.scoring import FileScore
from longseq.core.files import atomic_path

_COLOURS = {
    SYNTHETIC: "#c0392b",
    UNCERTAIN: "#8a6d00",
    NO_SIGN: "#2e7d32",
    UNSCORABLE: "#555",
    UNREADABLE: "#555",
}
_WIDTH, _HEIGHT = 240, 40
# Steps of a timeline at most: of longer songs neighbouring segments are averaged, so that 2,000
# files stay under 2 MB.
_MOST_STEPS = 40

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:76rem;padding:0 1rem;
color:#222}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.45rem .6rem;border-bottom:1px solid #ddd}
th button{font:inherit;font-weight:600;background:none;border:0;padding:0;cursor:pointer}
.f{overflow-wrap:anywhere;min-width:12rem}.n{text-align:right;font-variant-numeric:tabular-nums}
.r{color:#555;font-size:13px;overflow-wrap:anywhere}.v{font-weight:600;white-space:nowrap}
svg{width:100%;max-width:240px;min-width:120px;height:40px;background:#f4f4f4;display:block}
#bar{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0;position:sticky;top:0;
background:#fff;padding:.4rem 0}
#bar input,#bar select{font:inherit;padding:.2rem .4rem;max-width:100%}
audio{height:2rem;max-width:100%}
.p{border:1px solid #bbb;background:#fff;border-radius:3px;cursor:pointer}
@media(max-width:700px){thead{display:none}
tr{display:block;border-bottom:2px solid #ccc;padding:.4rem 0}
td{display:block;border:0;padding:.1rem 0}td.n{display:inline-block;margin-right:1rem}
.f{min-width:0}}
"""
_SCRIPT = """
const rows=[...document.querySelectorAll('tbody tr')],body=document.querySelector('tbody'),
find=document.getElementById('find'),kind=document.getElementById('kind'),
player=document.getElementById('player'),count=document.getElementById('count');
function show(){const words=find.value.toLowerCase();let n=0;
for(const r of rows){const on=(!kind.value||r.dataset.v===kind.value)&&
r.querySelector('.f').textContent.toLowerCase().includes(words);r.hidden=!on;n+=on;}
count.textContent=n+' of '+rows.length;}
find.oninput=kind.onchange=show;show();
let last='',down=false;
for(const b of document.querySelectorAll('th button'))b.onclick=()=>{const key=b.dataset.k;
down=key===last?!down:key!=='file';last=key;
const get=r=>key==='file'?r.querySelector('.f').textContent:+r.dataset[key];
const all=[...rows].sort((a,b)=>{const x=get(a),y=get(b);return(x<y?-1:x>y?1:0)*(down?-1:1)});
for(const r of all)body.append(r);};
body.onclick=e=>{if(e.target.className!=='p')return;player.hidden=false;
const src=e.target.dataset.src;if(player.dataset.src!==src){player.dataset.src=src;player.src=src;}
player.play().catch(()=>{e.target.textContent='cannot be played here'});};
"""


def _page(summary: str, about: str) -> str:
    policy = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    kinds = "".join(f"<option>{escape(name)}</option>" for name in _COLOURS)
    heads = "".join(
        f'<th><button data-k="{key}">{name}</button></th>'
        for key, name in (
            ("file", "file"),
            ("s", "duration"),
            ("p", "probability"),
            ("o", "verdict"),
        )
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{policy}'; media-src 'self' file:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>longseq audio scan</title>
<style>{_STYLE}</style></head><body>
<h1>Is it synthetic?</h1>
<p>{escape(summary)}</p>
<p>{escape(about)}</p>
<div id="bar"><input id="find" type="search" placeholder="name, artist or title">
<select id="kind"><option value="">all verdicts</option>{kinds}</select> <span id="count"></span>
<audio id="player" controls hidden></audio></div>
<table><thead><tr>{heads}<th>timeline and evidence</th></tr></thead><tbody>
"""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if seconds >= 1 else f"{seconds:.4g} s"


def _steps(item: FileScore) -> list[tuple[float, float]]:
    """Returns (end in s, probability) of at most ``_MOST_STEPS`` stretches of a file."""
    size = -(-len(item.segments) // _MOST_STEPS) or 1
    found = []
    for i in range(0, len(item.segments), size):
        part = item.segments[i : i + size]
        found.append((part[-1][1], sum(p for _, _, p in part) / len(part)))
    return found


def timeline(item: FileScore, calibration: Calibration) -> str:
    """Returns an SVG: as high as the probability, in the verdict's colour, the band shaded.

    Args:
        item: a scored file.
        calibration: for the band.
    """
    if not item.segments:
        return ""
    scale = _WIDTH / max(item.segments[-1][1], 1e-9)
    top, bottom = _HEIGHT * (1 - calibration.high), _HEIGHT * (1 - calibration.low)
    path = f"M0 {_HEIGHT}"
    for end, p in _steps(item):
        path += f"V{_HEIGHT - max(1.0, p * _HEIGHT):.0f}H{end * scale:.0f}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="probability over time"><path d="M0 {top:.0f}h{_WIDTH}V{bottom:.0f}H0z" '
        f'fill="#e0e0e0"/><path d="{path}V{_HEIGHT}z" fill="{_COLOURS[item.verdict]}"/></svg>'
    )


def evidence_plot(item: FileScore) -> str:
    """Returns an SVG of the spectrum that spoke: lines above their neighbourhood, and the comb.

    Args:
        item: a file with ``evidence["lines"]``: [frequency in Hz, height in dB] of its clearest.
    """
    lines = item.evidence.get("lines") or []
    if not lines or item.verdict == NO_SIGN:
        return ""
    top = 22050.0
    path = "".join(
        f"M{hertz / top * _WIDTH:.0f} {_HEIGHT}v-{min(_HEIGHT, max(1.0, 2 * height)):.0f}"
        for hertz, height in lines
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label='
        f'"lines over frequency, 0 to 22 kHz"><path d="{path}" stroke="#333" fill="none"/></svg>'
    )


def _row(file: Path, item: FileScore, calibration: Calibration, folder: Path) -> str:
    number = list(_COLOURS).index(item.verdict)
    p = "–" if item.probability is None else f"{item.probability:.2f}"
    sort = -1 if item.probability is None else f"{item.probability:.4f}"
    tags = " – ".join(item.tags[name] for name in ("artist", "title") if name in item.tags)
    name = escape(item.file) + (f'<div class="r">{escape(tags)}</div>' if tags else "")
    play = ""
    if item.verdict != UNREADABLE:
        address = quote(os.fsencode(os.path.relpath(file.absolute(), folder)))
        play = f' <button class="p" data-src="{address}">play</button>'
    return (
        f'<tr data-v="{item.verdict}" data-o="{number}" data-s="{item.seconds:.1f}" '
        f'data-p="{sort}">'
        f'<td class="f">{name}</td><td class="n">{_clock(item.seconds)}{play}</td>'
        f'<td class="n">{p}</td><td><span class="v" style="color:{_COLOURS[item.verdict]}">'
        f'{item.verdict}</span><div class="r">{escape(item.reason)}</div></td>'
        f"<td>{timeline(item, calibration)}{evidence_plot(item)}</td></tr>\n"
    )


def write_page(
    path: str | Path,
    scores: Iterable[tuple[Path, FileScore]],
    calibration: Calibration,
    summary: str,
    about: str,
    footer: str,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the file.
        scores: files and their scores, in the order of the page.
        calibration: of the detector.
        summary: counts, in words.
        about: what the detector was trained on and misses, in words.
        footer: how it was made, in words.
    """
    folder = Path(path).absolute().parent
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(_page(summary, about))
        for where, item in scores:
            file.write(_row(where, item, calibration, folder))
        file.write(
            f'</tbody></table>\n<p class="r">{escape(footer)}</p>\n<script>{_SCRIPT}</script>\n'
            "</body></html>\n"
        )
