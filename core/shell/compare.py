"""``longseq <domain> compare``: the same words for every domain, around its ``Comparison``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from longseq.core.command_line import CommandParser
from longseq.core.compare import Comparison, Row, compare, whole_numbers, write_table
from longseq.core.compare_entries import check_models
from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError
from longseq.core.shell.lightning_cli import fit_config
from longseq.core.tables import check_table

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
    done: list[tuple[Comparison, Sequence[Row]]] = []
    count = 0
    for comparison in cls.of(args):

        def save(rows: Sequence[Row], comparison: Comparison = comparison) -> None:
            write_table(args.out, [*done, (comparison, rows)])

        fit = partial(fit_config, domain)
        rows = compare(comparison, models, seeds, args.folder, fit, configs, options, save)
        comparison.report(rows)
        done.append((comparison, rows))
        count = write_table(args.out, done)
    print(f"\n{args.out}: {count} rows")
    return 0
