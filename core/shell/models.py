"""``longseq <domain> models``: the models of a domain's registry by name, with their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longseq.core.command_line import CommandParser
from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError, did_you_mean


def run(domain: Domain, argv: Sequence[str]) -> int:
    """Runs ``longseq <domain> models``.

    Args:
        domain: whose.
        argv: arguments.

    Raises:
        ConfigError: if no name matches the pattern.
    """
    models = import_object(domain.models or "")
    parser = CommandParser(prog=f"longseq {domain.name} models", description="Lists the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'vim*'")
    args = parser.parse_args(argv)
    names = models.names(args.pattern)
    if not names:
        raise ConfigError(
            f"no model matches {args.pattern!r}; {did_you_mean(args.pattern, models)}"
        )
    width = max(map(len, models))
    for name in names:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in models[name].create(name).parameters())
        print(f"{name:<{width}} {count / 1e6:8.3f} M  {models[name].help}")
    return 0
