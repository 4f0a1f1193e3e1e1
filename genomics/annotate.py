"""``longseq genomics annotate``: the genes of a bacterial genome, to GFF3."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import quote

import numpy as np

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, check_writable
from longseq.genomics.data.annotation import Feature, own_features, read_features
from longseq.genomics.data.fasta import Genome, open_genome
from longseq.genomics.data.formats import format_of
from longseq.genomics.data.genbank import read_genbank
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.tokenizer import decode, reverse_complement
from longseq.genomics.gene_finder import PASSES, GeneFinder
from longseq.genomics.gene_model import STOPS, Genes
from longseq.genomics.gene_scores import Agreement, agreement
from longseq.genomics.progress import progress_bar

_SAFE = " !\"#$'()*+-./:<>?@[\\]^_`{|}~"  # of GFF3's columns; the rest is written as %XX
_PRODIGAL_NEEDS = 20_000  # bases to be trained on


def to_features(genes: Genes, chrom: str) -> list[Feature]:
    """Returns genes as coding sequences of a record.

    Args:
        genes: of ``GeneFinder.find``.
        chrom: the record.
    """
    columns = (genes.start, genes.end, genes.strand, genes.phase)
    return [
        Feature(chrom, start, end, "+" if strand > 0 else "-", "CDS", "", (), phase)
        for start, end, strand, phase in zip(*(column.tolist() for column in columns))
    ]


def write_gff3(
    path: str | Path,
    genome: Genome,
    genes: dict[str, Genes],
    circular: Sequence[str] = (),
    code: int = 11,
) -> int:
    """Writes genes as GFF3: a region for each record, a gene and a CDS for each gene.

    What spans the origin of a circular record ends beyond the record's end, as GFF3 asks. The score
    of a CDS is ln of the ratio to no gene.

    Args:
        path: the file.
        genome: the records.
        genes: of each record.
        circular: records that are circles.
        code: genetic code.

    Returns:
        The number of genes.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write("##gff-version 3\n")
        for name, size in genome.records.items():
            out.write(f"##sequence-region {quote(name, _SAFE)} 1 {size}\n")
        for name, size in genome.records.items():
            seqid = quote(name, _SAFE.replace(" ", "").replace(">", ""))
            tag = quote(name, _SAFE)
            circle = ";Is_circular=true" if name in circular else ""
            _line(out, seqid, "region", 1, size, ".", "+", ".", f"ID={tag}{circle}")
            found = genes[name]
            for i in range(len(found)):
                count += 1
                low, high = int(found.start[i]) + 1, int(found.end[i])
                strand = "+" if found.strand[i] > 0 else "-"
                left, right = bool(found.open_start[i]), bool(found.open_end[i])
                if strand == "-":
                    left, right = right, left
                partial = ";partial=true" if left or right else ""
                partial += f";start_range=.,{low}" if left else ""
                partial += f";end_range={high},." if right else ""
                label = f"ID=gene_{count:05d}"
                _line(out, seqid, "gene", low, high, ".", strand, ".", label + partial)
                label = f"ID=cds_{count:05d};Parent=gene_{count:05d};transl_table={code}"
                score, phase = f"{found.score[i]:.1f}", str(found.phase[i])
                _line(out, seqid, "CDS", low, high, score, strand, phase, label + partial)
    return count


def _line(out: IO[str], seqid: str, kind: str, *columns: object) -> None:
    out.write("\t".join(map(str, (seqid, "longseq", kind, *columns))) + "\n")


def write_proteins(
    path: str | Path, genome: Genome, genes: dict[str, Genes], code: int = 11
) -> None:
    """Writes the proteins of genes as FASTA, named as in the GFF3 file.

    Args:
        path: the file.
        genome: the records.
        genes: of each record.
        code: genetic code.
    """
    from Bio.Seq import translate

    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as out:
        for name, found in genes.items():
            size = genome.records[name]
            for i in range(len(found)):
                count += 1
                low, high = int(found.start[i]), int(found.end[i])
                ids = genome.fetch(name, low, min(high, size))
                if high > size:
                    ids = np.concatenate([ids, genome.fetch(name, 0, high - size)])
                ids = ids if found.strand[i] > 0 else reverse_complement(ids)
                ids = ids[int(found.phase[i]) :]
                protein = translate(decode(ids[: len(ids) // 3 * 3]), table=code).removesuffix("*")
                if not found.open_start[i]:
                    protein = "M" + protein[1:]
                place = f"{name}:{low + 1}-{high}({'+' if found.strand[i] > 0 else '-'})"
                out.write(f">cds_{count:05d} {place}\n")
                out.writelines(f"{protein[k : k + 80]}\n" for k in range(0, len(protein), 80))


def find_prodigal(genome: Genome, code: int) -> list[Feature] | None:
    """Returns what Prodigal finds, trained on all records together, or by its ready models where
    they have fewer than 20,000 bases; None where the package ``pyrodigal`` is not installed.

    Args:
        genome: the records.
        code: genetic code.
    """
    try:
        import pyrodigal
    except ImportError:
        return None
    texts = {name: decode(genome.fetch(name, 0, size)) for name, size in genome.records.items()}
    short = sum(map(len, texts.values())) < _PRODIGAL_NEEDS
    finder = pyrodigal.GeneFinder(meta=short)
    if not short:
        finder.train(*texts.values(), translation_table=code)
    return [
        Feature(name, one.begin - 1, one.end, "+" if one.strand > 0 else "-", "CDS", "", (), 0)
        for name, text in texts.items()
        for one in finder.find_genes(text)
    ]


def compare(
    genome: Genome, sets: dict[str, Sequence[Feature]], annotated: Sequence[Feature]
) -> dict[str, Agreement]:
    """Returns how well sets of coding sequences agree with an annotation, over all records.

    Args:
        genome: the records.
        sets: name → coding sequences.
        annotated: features of the annotation; only its CDS are asked for.
    """
    result = {}
    for label, features in sets.items():
        total = Agreement(0, 0, 0, 0, 0, 0, 0)
        for name, size in genome.records.items():
            own = [one for one in features if one.chrom == name]
            truth = [one for one in annotated if one.chrom == name and one.kind == "CDS"]
            total = total + agreement(own, truth, size)
        result[label] = total
    return result


def _print(result: dict[str, Agreement]) -> None:
    from rich.console import Console
    from rich.table import Table

    print("agreement with the annotation (pseudogenes left out):")
    table = Table()
    table.add_column("")
    for name in result:
        table.add_column(name, justify="right")
    table.add_row("genes", *(f"{one.found:,}" for one in result.values()))
    numbers = [one.numbers() for one in result.values()]
    for key in numbers[0]:
        table.add_row(key.replace("_", " "), *(f"{values[key]:.4f}" for values in numbers))
    Console(file=sys.stdout, markup=False).print(table)
    first = next(iter(result.values()))
    print(f"{first.annotated:,} genes annotated. Bases count by strand and frame, genes by their")
    print("stop codon; exact: the share of annotated genes found with their start.")
    name, *others = result
    for other in others:
        own, theirs = (result[one].numbers()["base_f1"] for one in (name, other))
        said = "ahead of" if own > theirs else "behind" if own < theirs else "equal to"
        print(f"{name} is {said} {other} by base-level F1: {own:.4f} and {theirs:.4f}.")
    if "Prodigal" not in result:
        print("Prodigal is not beside it: pip install pyrodigal")


def _circles(genome: Genome, given: str) -> list[str]:
    """Returns the records that are circles: what the file says, all, none, or those named."""
    if given == "none":
        return []
    if given == "all":
        return list(genome.records)
    if given == "auto":
        if format_of(genome.path) not in ("genbank", "embl"):
            return []
        return [one.name for one in read_genbank(genome.path) if one.circular]
    return [genome.resolve(name) for name in given.split(",")]


def learn(
    finder: GeneFinder, genome: Genome, sources: Sequence[str], annotations: Sequence[str]
) -> tuple[int, bool]:
    """Learns from the genome itself, from other genomes, or from annotated ones.

    Args:
        finder: that learns.
        genome: to be annotated.
        sources: files to learn from in its place.
        annotations: of each of them, GFF3, GenBank or EMBL; a source in GenBank or EMBL has its
            own.

    Returns:
        The number of genes, and whether they were annotated.

    Raises:
        DataError: if some sources are annotated and others are not.
        ConfigError: for another number of annotations than of sources.
    """
    if annotations and len(annotations) != len(sources):
        raise ConfigError(f"{len(annotations)} of --learn_genes for {len(sources)} of --learn")
    genomes = [open_genome(name) for name in sources] or [genome]
    sequences = [
        (one, name, one.fetch(name, 0, size))
        for one in genomes
        for name, size in one.records.items()
    ]
    if sources:
        features = {
            one.path: read_features(path, one) if path else own_features(one.path, one)
            for one, path in zip(genomes, annotations or [None] * len(genomes))
        }
        marked = [any(f.kind == "CDS" for f in own) for own in features.values()]
        if any(marked):
            if not all(marked):
                bare = next(path for path, own in zip(features, marked) if not own)
                raise DataError("has no CDS, unlike the others to learn from", path=bare)
            rows = [
                (ids, [f for f in features[one.path] if f.chrom == name])
                for one, name, ids in sequences
            ]
            return finder.learn_annotated(rows), True
    total = PASSES * sum(len(ids) for _, _, ids in sequences)
    with progress_bar("learning genes", total) as progress:
        return finder.learn([ids for _, _, ids in sequences], progress), False


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics annotate``."""
    parser = CommandParser(
        prog="longseq genomics annotate",
        description="Finds the protein-coding genes of a bacterium or archaeon and writes them as "
        "GFF3. Learns from the genome itself unless others are given.",
    )
    parser.add_argument("genome", help=f"genome file, or a sample: {', '.join(SAMPLES.names())}")
    parser.add_argument("--out", required=True, help=".gff3 file to write")
    parser.add_argument("--proteins", help="FASTA file to write the proteins to")
    parser.add_argument(
        "--learn", default="", help="genomes to learn from in place of this one: a.gbk,b.gbk"
    )
    parser.add_argument(
        "--learn_genes", default="", help="their annotations, where they are FASTA: a.gff3,b.gff3"
    )
    parser.add_argument(
        "--circular",
        default="auto",
        help="records that are circles: all, none, names, or auto: as a GenBank file says (auto)",
    )
    parser.add_argument(
        "--closed", action="store_true", help="no gene goes beyond an end or into a gap"
    )
    parser.add_argument(
        "--code", type=int, default=11, choices=sorted(STOPS), help="genetic code (11)"
    )
    parser.add_argument(
        "--ckpt_path",
        help="a trained GeneLabelling, which then says what reading frames are worth; starts and "
        "distances are still learnt as above",
    )
    parser.add_argument(
        "--truth", help="annotation to compare with (that of a GenBank genome), beside Prodigal"
    )
    args = parser.parse_args(argv)
    for path in (args.out, args.proteins):
        if path:
            check_writable(path)
    if not args.out.lower().endswith((".gff3", ".gff")):
        raise ConfigError(f"--out must end in .gff3, got {args.out}")
    labeller = None
    if args.ckpt_path:  # torch is imported for this alone
        from longseq.genomics.gene_network import by_network, load_labeller

        labeller = load_labeller(args.ckpt_path)
    genome = open_genome(args.genome)
    circular = _circles(genome, args.circular)
    truth = (
        read_features(args.truth, genome, circular=circular)
        if args.truth
        else own_features(genome.path, genome)
    )
    finder = GeneFinder(args.code, args.closed)
    sources = [one for one in args.learn.split(",") if one]
    marks = [one for one in args.learn_genes.split(",") if one]
    learnt, annotated = learn(finder, genome, sources, marks)
    kind = "annotated genes" if annotated else "genes found without annotation"
    print(f"learnt from {learnt:,} {kind}")
    genes = {
        name: finder.find(genome.fetch(name, 0, size), name in circular)
        for name, size in genome.records.items()
    }
    sets = {"longseq": genes}
    if labeller is not None:
        sets = {**by_network(labeller, finder, genome, circular), "gene model": genes}
        genes = sets["network"]
    count = write_gff3(args.out, genome, genes, circular, args.code)
    print(f"{args.out}: {count:,} genes in {len(genes):,} records")
    if args.proteins:
        write_proteins(args.proteins, genome, genes, args.code)
        print(args.proteins)
    if any(one.kind == "CDS" for one in truth):
        compared: dict[str, Sequence[Feature]] = {
            label: [one for name in own for one in to_features(own[name], name)]
            for label, own in sets.items()
        }
        prodigal = find_prodigal(genome, args.code)
        if prodigal is not None:
            compared["Prodigal"] = prodigal
        _print(compare(genome, compared, truth))
    return 0
