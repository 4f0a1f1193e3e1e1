"""``longseq audio models``: the models by name, with their sizes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from longseq.audio.models.registry import create_model, describe_model, list_models
from longseq.core.errors import ConfigError, did_you_mean


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio models``."""
    parser = argparse.ArgumentParser(prog="longseq audio models", description="Lists the models.")
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'spectttra*'")
    args = parser.parse_args(argv)
    names = list_models(args.pattern)
    if not names:
        raise ConfigError(f"no model matches {args.pattern!r}; {did_you_mean(args.pattern, list_models())}")
    for name in names:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in create_model(name).parameters())
        print(f"{name:<22} {count / 1e6:8.3f} M  {describe_model(name)}")
    return 0
