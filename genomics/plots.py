"""Pictures of scored genomes: bits per base along each record, above its genes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.core.errors import DataError
from longseq.core.figures import new_figure, save_png
from longseq.core.tables import read_batches
from longseq.genomics.data.formats import format_of
from longseq.genomics.data.genbank import Gene, read_genbank
from longseq.genomics.data.splits import Interval

BINS = 1000


def _binned(path: Path, chrom: str | None) -> tuple[str, int, np.ndarray]:
    """Returns a record's name, its length, and mean bits per base in at most BINS bins; reads in
    batches."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = {"chrom": pa.string(), "position": pa.int64(), "log_likelihood": pa.float32()}
    sizes: dict[str, int] = {}
    for batch in read_batches(path, {key: kinds[key] for key in ("chrom", "position")}):
        for name in batch["chrom"].unique().to_pylist():
            inside = batch.filter(pc.equal(batch["chrom"], name))["position"]
            sizes[name] = max(sizes.get(name, 0), pc.max(inside).as_py() + 1)
    if not sizes:
        raise DataError("holds no scores", path=path)
    name = max(sizes, key=lambda key: sizes[key]) if chrom is None else chrom
    if name not in sizes:
        raise DataError("has no such record", path=path, record=name)
    width = max(1, math.ceil(sizes[name] / BINS))
    total, count = (np.zeros(math.ceil(sizes[name] / width)) for _ in range(2))
    for batch in read_batches(path, kinds):
        rows = batch.filter(pc.equal(batch["chrom"], name))
        values = rows["log_likelihood"].to_numpy(zero_copy_only=False).astype(np.float64)
        scored = np.isfinite(values)
        bins = rows["position"].to_numpy()[scored] // width
        np.add.at(total, bins, -values[scored] / math.log(2))
        np.add.at(count, bins, 1)
    return name, sizes[name], np.where(count > 0, total / np.maximum(count, 1), np.nan)


def plot_scores(
    scores: str | Path,
    image: str | Path,
    genome: str | Path | None = None,
    chrom: str | None = None,
    held_out: Sequence[Interval] = (),
) -> None:
    """Draws bits per base along a record, with its genes below.

    Args:
        scores: table of ``longseq genomics predict``.
        image: PNG to write.
        genome: GenBank or EMBL file with the genes; a file of another format has none to draw.
        chrom: the record; the longest if None.
        held_out: regions to shade.
    """
    name, size, bits = _binned(Path(scores), chrom)
    genes: list[Gene] = []
    if genome is not None and format_of(genome) in ("genbank", "embl"):
        genes = [
            gene for record in read_genbank(genome) if record.name == name for gene in record.genes
        ]
    figure = new_figure(11, 4)
    if genes:
        axes, track = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        for strand, row, colour in (("+", 0.55, "#3a6ea5"), ("-", 0.0, "#c06c34")):
            spans = [
                (gene.start / 1e3, (gene.end - gene.start) / 1e3)
                for gene in genes
                if gene.strand == strand
            ]
            track.broken_barh(spans, (row, 0.4), facecolors=colour)
        track.set(yticks=[0.75, 0.2], yticklabels=["+", "−"], ylabel="genes", ylim=(-0.1, 1.05))
        below = track
    else:
        axes = below = figure.subplots()
    centre = (np.arange(len(bits)) + 0.5) * math.ceil(size / BINS) / 1e3
    for item in held_out:
        if item.chrom == name:
            axes.axvspan(item.start / 1e3, item.end / 1e3, color="0.9", label="held out")
    axes.plot(centre, bits, linewidth=0.8, color="#2b2b2b")
    axes.axhline(2.0, linestyle=":", color="0.5", linewidth=1)
    axes.set(ylabel="bits per base", title=f"{name}: cost of each base under the model")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left")
    below.set(xlabel="position (kb)", xlim=(0, size / 1e3))
    save_png(figure, image)
