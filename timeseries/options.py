"""Options of the commands that say what the columns of a frame are and how its times are read."""

from __future__ import annotations

import argparse

from longseq.timeseries.data.dates import READINGS
from longseq.timeseries.data.frames import Roles


def add_roles(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``Roles``."""
    parser.add_argument("--id", help="column with the series' names (unique_id, item_id)")
    parser.add_argument("--time", help="column with the times (ds, date, timestamp, …)")
    parser.add_argument("--target", help="column with the values (y, target)")
    parser.add_argument("--zone", help="time zone of the clock of the times, e.g. Europe/Berlin")
    parser.add_argument(
        "--date_order",
        choices=READINGS,
        help="of dates like 01/02/24, or what whole numbers are, where the column does not tell",
    )
    parser.add_argument("--resample", help="average over this step, e.g. 1min, for irregular times")
    for kind, text in (
        ("future", "columns known for the future too, by commas: promo,price"),
        ("past", "columns known up to the cutoff only, by commas (models trained with them)"),
        ("static", "columns with one value a series, by commas (likewise)"),
    ):
        parser.add_argument(f"--{kind}", default="", help=text)
    parser.add_argument("--holidays", help="country whose holidays are a covariate: DE, DE-BY")
    parser.add_argument(
        "--missing",
        choices=("ffill", "error"),
        default="ffill",
        help="missing values: carried forward in contexts and never scored, or an error (ffill)",
    )


def roles_of(args: argparse.Namespace) -> Roles:
    """Returns what the options of ``add_roles`` say."""
    kinds = {
        kind: tuple(name for name in getattr(args, kind).split(",") if name)
        for kind in ("future", "past", "static")
    }
    usual = (args.id, args.time, args.target, args.zone, args.resample, args.missing)
    return Roles(*usual, **kinds, holidays=args.holidays, date_order=args.date_order)


def arguments_of(roles: Roles) -> list[str]:
    """Returns the options that say what ``roles`` say and is not usual."""
    found: list[str] = []
    for name, value in vars(roles).items():
        text = ",".join(value) if isinstance(value, tuple) else value
        if text and (name, text) != ("missing", "ffill"):
            found += [f"--{name}", text]
    return found
