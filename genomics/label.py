"""``longseq genomics label``: the class or number of every sequence of a file."""

from __future__ import annotations

from collections.abc import Sequence

from longseq.core.command_line import CommandParser, add_device
from longseq.core.tables import check_table, write_rows
from longseq.core.training.loading import load_task
from longseq.genomics.data.fasta import Genome
from longseq.genomics.sequence_task import SequencePrediction, predict_rows


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics label``."""
    parser = CommandParser(
        prog="longseq genomics label",
        description="Writes the probability of every class, or the number, of each sequence.",
    )
    parser.add_argument("fasta", help="the sequences, in any format that `predict` reads")
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a SequencePrediction")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet file to write")
    add_device(parser)
    args = parser.parse_args(argv)
    check_table(args.out)
    task = load_task(args.ckpt_path, SequencePrediction)
    assert isinstance(task, SequencePrediction)
    genome = Genome(args.fasta)
    genome.validate()
    sequences = [genome.fetch(name, 0, size) for name, size in genome.records.items()]
    said = predict_rows(task.to(args.device), sequences).tolist()
    if task.n_classes:
        columns = {"name": "", "label": "", **dict.fromkeys(task.classes, ".6f")}
        rows = [[n, task.classes[p.index(max(p))], *p] for n, p in zip(genome.records, said)]
    else:
        columns = {"name": "", "value": "r"}
        rows = [[name, *values] for name, values in zip(genome.records, said)]
    write_rows(args.out, columns, rows)
    print(f"{args.out}: {len(rows):,} sequences")
    return 0
