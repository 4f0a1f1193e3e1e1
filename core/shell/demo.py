"""``longseq demo``: every domain's demo in turn, or one of them, and the report of what they
found."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from longseq.core import __version__
from longseq.core.command_line import CommandParser
from longseq.core.domain import Domain, MissingRequirement, import_object, list_domains, load_domain
from longseq.core.errors import ConfigError
from longseq.core.report.page import write_page
from longseq.core.results import print_table
from longseq.core.shell.lightning_cli import fit_config

if TYPE_CHECKING:
    from longseq.core.report.section import Section


def run_demos(argv: Sequence[str], domains: Sequence[Domain] | None = None) -> int:
    """Runs demos and writes ``index.html``, and a folder for each domain, into ``--out``.

    Args:
        argv: options.
        domains: whose; those of this version that have a demo if None.

    Raises:
        ConfigError: if no domain has a demo.
        MissingRequirement: if one domain was asked for and its optional dependencies are missing.
    """
    what = (
        f"longseq {domains[0].name} demo"
        if domains is not None and len(domains) == 1
        else "longseq demo"
    )
    parser = CommandParser(prog=what, description="Trains small models on packaged real data.")
    parser.add_argument(
        "--out", default="outputs/demo", help="folder for the report (outputs/demo)"
    )
    parser.add_argument("--max_steps", type=int, help="training steps, in place of the demos' own")
    args = parser.parse_args(list(argv))
    if args.max_steps is not None and args.max_steps < 1:
        raise ConfigError(f"--max_steps must be at least 1, got {args.max_steps}")
    if domains is None:
        domains = [load_domain(name) for name in list_domains()]
    chosen = [domain for domain in domains if domain.demo is not None]
    if not chosen:
        raise ConfigError("no domain of this version has a demo")
    out, start = Path(args.out), time.perf_counter()
    sections: list[Section] = []
    for number, domain in enumerate(chosen, start=1):
        print(f"\n=== {domain.name} ({number} of {len(chosen)}) ===", flush=True)
        try:
            domain.check_requirements()
        except MissingRequirement as missing:
            if len(chosen) == 1:
                raise
            print(f"left out: {missing}")
            continue
        assert domain.demo is not None
        demo = import_object(domain.demo.run, ":")
        section = demo(out / domain.name, partial(fit_config, domain), args.max_steps)
        sections.append(section)
        print_table(section.scores, section.metric, section.question, section.lower_is_better)
        print(section.verdict)
        for text in section.findings:
            print(text)
        print(f"{section.speed} ({section.seconds:.0f} s in all)")
        for file in section.files:
            print(f"  {file}")
    if not sections:
        raise ConfigError('no demo could run: pip install "longseq[all]"')
    page = out / "index.html"
    title = "longseq demo: models beside their baselines"
    write_page(page, title, sections, _footer(time.perf_counter() - start))
    print(f"\nThe report: {page}")
    return 0


def _footer(seconds: float) -> str:
    threads = torch.get_num_threads()
    return (
        f"longseq {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {threads} threads; {seconds:.0f} s in all. Every model was "
        f"trained, and "
        "every baseline fitted, on this machine in this run, unless its section says otherwise."
    )
