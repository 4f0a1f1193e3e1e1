"""``longseq <domain> compare``: the same words for every domain, around its ``Comparison``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from longseq.core.command_line import CommandParser, check_outputs
from longseq.core.compare import (
    CHECKPOINTS,
    Comparison,
    Row,
    compare,
    whole_numbers,
    write_table,
)
from longseq.core.compare_entries import check_models
from longseq.core.curves import Curve, check_curves, read_curve, save_curves
from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError
from longseq.core.shell.lightning_cli import fit_config
from longseq.core.tables import check_table

if TYPE_CHECKING:
    from longseq.core.training.run import Run

_PASSED_ON = ("--model.", "--data.", "--trainer.", "--progress")


def run(domain: Domain, argv: Sequence[str]) -> int:
    """Runs the comparison of a domain.

    Args:
        domain: whose.
        argv: arguments.

    Raises:
        ConfigError: for wrong options, in one line.
    """
    assert domain.compare is not None
    cls: type[Comparison] = import_object(domain.compare.run, ":")
    configs = domain.configs()
    if cls.configs:
        configs = {name: configs[name] for name in cls.configs}
    usual = ",".join((*(cls.usual or cls.baselines), *cls.trained))
    parser = CommandParser(
        prog=f"longseq {domain.name} compare",
        description=f"{domain.compare.help}. Options of fit (--model.x, --trainer.x, …) are "
        f"passed on.",
        allow_abbrev=False,
    )
    known = ", ".join((*cls.baselines, *configs))
    parser.add_argument(
        "--models",
        default=usual,
        help=f"by commas, of {known}, YAML files, checkpoints ({usual}); "
        "a variant of a configuration: name:argument=value",
    )
    parser.add_argument("--seeds", default="0", help="of the trained models, by commas (0)")
    folder = f"outputs/{domain.name}"
    parser.add_argument("--folder", default=folder, help=f"for checkpoints and logs ({folder})")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet table to write")
    text = ".png of validation scores over time, with a .csv beside it"
    parser.add_argument("--curves", help=text)
    cls.add_arguments(parser)
    first = ",".join([*list(cls.baselines)[:1], *list(configs)[:1]])
    parser.example = f"{parser.needed()} --models {first}"
    args, options = parser.parse_known_args(argv)
    for text in options:
        if text.startswith("-") and not text.startswith(_PASSED_ON):
            where = f"longseq {domain.name} compare --help"
            raise ConfigError(f"{text.partition('=')[0]}: no such option; {where}")
    check_table(args.out)
    seeds = whole_numbers("--seeds", args.seeds)
    models = check_models(args.models, cls.baselines, configs)
    if args.curves is not None:
        _check_curves(args.curves, args.out, models, cls)
    # The table of the curves is named by no option, and options that are passed on name files too.
    table = None if args.curves is None else str(check_curves(args.curves))
    files = Namespace(**vars(args), passed_on=options, curves_table=table)
    check_outputs(files, {"out": "--out", "curves": "--curves", "curves_table": "--curves"})
    curves: list[Curve] = []
    done: list[tuple[Comparison, Sequence[Row]]] = []
    count = 0
    for comparison in cls.of(args):

        def save(rows: Sequence[Row], comparison: Comparison = comparison) -> None:
            write_table(args.out, [*done, (comparison, rows)])

        def note(name: str, seed: int, run: Run, comparison: Comparison = comparison) -> None:
            if args.curves is not None:
                name = " ".join(part for part in (name, comparison.label) if part)
                curves.append(read_curve(run.folder, comparison.curve, name, seed))
                save_curves(args.curves, curves, comparison.curve)

        fit = partial(fit_config, domain)
        rows = compare(comparison, models, seeds, args.folder, fit, configs, options, save, note)
        comparison.report(rows)
        done.append((comparison, rows))
        count = write_table(args.out, done)
    print(f"\n{args.out}: {count} rows")
    if args.curves is not None:
        print(f"{args.curves}, {check_curves(args.curves)}: {len(curves)} curves")
    return 0


def _check_curves(path: str, out: str, models: Sequence[str], cls: type[Comparison]) -> None:
    """Checks that curves can be written, apart from the scores, and that there will be some."""
    if check_curves(path).resolve() == Path(out).resolve():
        raise ConfigError(f"--curves {path}: its table would be --out {out}; choose another name")
    trained = [one for one in models if one not in cls.baselines]
    if all(Path(one).suffix in CHECKPOINTS for one in trained):
        raise ConfigError("--curves: nothing in --models is trained, so there are no curves")
