"""``longseq genomics mutagenesis``: every single-base change of a region, as a table and a logo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import DataError
from longseq.core.figures import new_figure, save_png
from longseq.core.tables import check_table, write_rows
from longseq.genomics.data.regions import parse_region
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import decode
from longseq.genomics.data.vcf import Variant
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.scorers import CKPT_HELP, load_scorer
from longseq.genomics.variant_scores import WINDOW, Scorer
from longseq.genomics.variant_sites import CONTEXT, Options, options_for, score_variants

LETTERS = "ACGT"
COLOURS = {"A": "#2a9d4a", "C": "#3a6ea5", "G": "#d9932a", "T": "#b83b3b"}
MOST = 10_000


def mutate(
    scorer: Scorer | MaskedScorer,
    region: Interval,
    options: Options,
) -> tuple[str, np.ndarray]:
    """Scores all three changes of every base of a region.

    Args:
        scorer: the model with its reference.
        region: at most 10,000 bases.
        options: how, see ``variants``.

    Returns:
        The region's letters, and ln p(base there …) - ln p(reference …), float64 (bases, 4) in the
        order ACGT: 0 for the reference's own base, NaN where that is unknown.

    Raises:
        DataError: if the region is too long.
    """
    if len(region) > MOST:
        raise DataError(f"{len(region):,} bases are too many at once, at most {MOST:,}")
    letters = decode(scorer.genome.fetch(region.chrom, region.start, region.end))
    variants = [
        Variant(region.chrom, region.start + i, ".", letter, tuple(set(LETTERS) - {letter}))
        for i, letter in enumerate(letters)
    ]
    matrix = np.full((len(letters), 4), np.nan)
    for i, (variant, scored) in enumerate(
        zip(variants, score_variants(variants, scorer, options), strict=True)
    ):
        for alt, value in zip(variant.alts, scored.mean()):
            matrix[i, LETTERS.index(alt)] = value
        if variant.ref in LETTERS:
            matrix[i, LETTERS.index(variant.ref)] = 0.0
    return letters, matrix


def plot_logo(letters: str, matrix: np.ndarray, first: int, image: str | Path, title: str) -> None:
    """Draws the matrix and, above it, the reference's letters as high as the mean loss by a change.

    Args:
        letters: of the region.
        matrix: of ``mutate``.
        first: position of the first base, from 1.
        image: PNG to write.
        title: of the picture.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    figure = new_figure(max(6.0, min(24.0, 0.16 * len(letters))), 3.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for i, letter in enumerate(letters):
        others = [matrix[i, j] for j, name in enumerate(LETTERS) if name != letter]
        height = -float(np.mean(others)) if letter in LETTERS else np.nan
        if not np.isfinite(height) or height == 0:
            continue
        shape = TextPath((0, 0), letter, size=1)
        box = shape.get_extents()
        place = Affine2D().translate(-box.x0, -box.y0)
        place = place.scale(0.9 / box.width, height / box.height).translate(first + i - 0.45, 0)
        above.add_patch(PathPatch(place.transform_path(shape), color=COLOURS[letter], linewidth=0))
    loss = -np.nanmean(np.where(matrix == 0, np.nan, matrix), axis=1) if len(letters) else [0.0]
    low, high = min(0.0, float(np.nanmin(loss))), max(0.0, float(np.nanmax(loss)))
    above.set_ylim(low * 1.05, high * 1.05 or 1.0)
    above.axhline(0, color="0.4", linewidth=0.8)
    above.set(ylabel="mean loss by\na change (nats)", title=title)
    bound = float(np.nanmax(np.abs(matrix))) or 1.0
    picture = below.imshow(
        matrix.T,
        aspect="auto",
        cmap="RdBu",
        vmin=-bound,
        vmax=bound,
        extent=(first - 0.5, first + len(letters) - 0.5, 3.5, -0.5),
    )
    below.set(yticks=range(4), yticklabels=list(LETTERS), xlabel="position")
    figure.colorbar(picture, ax=[above, below], label="ln p ratio")
    save_png(figure, image)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics mutagenesis``."""
    parser = CommandParser(
        prog="longseq genomics mutagenesis",
        description="Scores every single-base change of a region, as `variants` does.",
    )
    parser.add_argument("genome", help="genome file or packaged sample")
    parser.add_argument("--region", required=True, help="record:first-last, from 1")
    parser.add_argument("--ckpt_path", help=CKPT_HELP)
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet table to write")
    parser.add_argument("--plot", help="PNG to write: the matrix with a logo")
    parser.add_argument("--context", type=int, help=f"as of variants ({CONTEXT})")
    parser.add_argument("--window", type=int, help=f"as of variants ({WINDOW})")
    parser.add_argument("--strand", default="both", help="both (default), + or -")
    add_device(parser)
    args = parser.parse_args(argv)
    check_table(args.out)
    source = SAMPLES.path(args.genome) if args.genome in SAMPLES.names() else Path(args.genome)
    scorer = load_scorer(source, args.ckpt_path, args.window, args.device)
    options = options_for(scorer, args.context, args.strand)
    region = parse_region(args.region, scorer.genome)
    letters, matrix = mutate(scorer, region, options)
    columns = {"chrom": "", "pos": "d", "ref": "", **dict.fromkeys(LETTERS, ".6f")}
    rows = (
        [region.chrom, region.start + i + 1, letter, *(None if np.isnan(x) else x for x in values)]
        for i, (letter, values) in enumerate(zip(letters, matrix.tolist()))
    )
    write_rows(args.out, columns, rows)
    print(f"{args.out}: {len(letters):,} bases of {region.chrom}, from {region.start + 1:,}")
    if args.plot:
        title = f"{region.chrom}:{region.start + 1}-{region.end}"
        plot_logo(letters, matrix, region.start + 1, args.plot, title)
        print(args.plot)
    return 0
