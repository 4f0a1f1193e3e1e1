"""Pictures of scored genomes: bits per base along each record, above its genes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.core.figures import new_figure, save_png
from longseq.core.tables import read_batches
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.splits import Interval

BINS = 1000
CHARACTERS = 150  # that fit side by side over the whole width
ROWS = {"+": 0.6, "-": 0.0, ".": 0.3}


def _binned(path: Path, chrom: str | None) -> tuple[str, int, int, np.ndarray]:
    """Returns a record's name, its first and last scored position, and mean bits per base in at
    most BINS bins; reads in batches."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = {"chrom": pa.string(), "position": pa.int64(), "log_likelihood": pa.float32()}
    bounds: dict[str, tuple[int, int]] = {}
    for batch in read_batches(path, {key: kinds[key] for key in ("chrom", "position")}):
        for name in batch["chrom"].unique().to_pylist():
            inside = batch.filter(pc.equal(batch["chrom"], name))["position"]
            low, high = pc.min(inside).as_py(), pc.max(inside).as_py() + 1
            before = bounds.get(name, (low, high))
            bounds[name] = min(before[0], low), max(before[1], high)
    if not bounds:
        raise DataError("holds no scores", path=path)
    name = max(bounds, key=lambda key: bounds[key][1] - bounds[key][0]) if chrom is None else chrom
    if name not in bounds:
        raise DataError("has no such record", path=path, record=name)
    first, last = bounds[name]
    width = max(1, math.ceil((last - first) / BINS))
    total, count = (np.zeros(math.ceil((last - first) / width)) for _ in range(2))
    for batch in read_batches(path, kinds):
        rows = batch.filter(pc.equal(batch["chrom"], name))
        values = rows["log_likelihood"].to_numpy(zero_copy_only=False).astype(np.float64)
        scored = np.isfinite(values)
        bins = (rows["position"].to_numpy()[scored] - first) // width
        np.add.at(total, bins, -values[scored] / math.log(2))
        np.add.at(count, bins, 1)
    return name, first, last, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def plot_scores(
    scores: str | Path,
    image: str | Path,
    genes: Sequence[Feature] = (),
    chrom: str | None = None,
    held_out: Sequence[Interval] = (),
) -> None:
    """Draws bits per base along what was scored of a record, with its genes below as arrows, named
    where there is room.

    Args:
        scores: table of ``longseq genomics predict``.
        image: PNG to write.
        genes: of any records, see ``read_features``.
        chrom: the record; the one of which most was scored if None.
        held_out: regions to shade.
    """
    name, low, high, bits = _binned(Path(scores), chrom)
    shown = [
        one
        for one in genes
        if one.chrom == name and any(start < high and end > low for start, end in one.spans())
    ]
    figure = new_figure(11, 4)
    if shown:
        axes, track = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _draw_genes(track, shown, low, high)
        below = track
    else:
        axes = below = figure.subplots()
    width = max(1, math.ceil((high - low) / BINS))
    centre = (low + (np.arange(len(bits)) + 0.5) * width) / 1e3
    for item in held_out:
        if item.chrom == name:
            axes.axvspan(item.start / 1e3, item.end / 1e3, color="0.9", label="held out")
    axes.plot(centre, bits, linewidth=0.8, color="#2b2b2b")
    axes.axhline(2.0, linestyle=":", color="0.5", linewidth=1)
    axes.set(ylabel="bits per base", title=f"{name}: cost of each base under the model")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    below.set(xlabel="position (kb)", xlim=(low / 1e3, high / 1e3))
    save_png(figure, image)


def _draw_genes(track: Any, genes: Sequence[Feature], low: int, high: int) -> None:
    """Draws genes as arrows in their direction, a row for each strand."""
    head = (high - low) / 150
    for one in genes:
        row = ROWS[one.strand]
        colour = "#c06c34" if one.strand == "-" else "#3a6ea5"
        for start, end in one.spans():
            tip = min(head, (end - start) / 2) if one.strand in "+-" else 0.0
            left, right = (start + tip, end) if one.strand == "-" else (start, end - tip)
            corners = [(left, row), (right, row), (right, row + 0.4), (left, row + 0.4)]
            if one.strand == "+":
                corners.insert(2, (end, row + 0.2))
            if one.strand == "-":
                corners.append((start, row + 0.2))
            shape = [(x / 1e3, y) for x, y in corners]
            track.fill(*zip(*shape), color=colour, linewidth=0)
        # A gene across the origin has two pieces: the wider one that is seen has the name.
        ends = one.spans() if one.size else ((one.start, one.end),)
        seen = [(max(start, low), min(end, high)) for start, end in ends]
        first, last = max(seen, key=lambda pair: pair[1] - pair[0])
        room = (last - first) / (high - low) * CHARACTERS
        if one.name and room > len(one.name):
            middle = (first + last) / 2e3
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": "white"}
            track.text(middle, row + 0.19, one.name, clip_on=True, parse_math=False, **style)
    track.set(yticks=[0.8, 0.2], yticklabels=["+", "−"], ylabel="genes", ylim=(-0.1, 1.1))
