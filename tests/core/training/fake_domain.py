"""A domain ``toy`` for tests: ``toy.py`` importable as ``longseq.toy``, and its registration."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from longseq.core.domain import Command, Domain, register_domain

DOMAIN = Domain(
    name="toy",
    help="running means, for tests",
    task="longseq.core.training.task.BaseTask",
    data="longseq.core.training.hyper.BaseData",
    modules=("longseq.toy",),
    commands={"demo": Command("nothing much", "longseq.toy:demo")},
    defaults={
        "model": "ToyTask",
        "data": "ToyData",
        "trainer.max_steps": 7,
        "trainer.accelerator": "cpu",
    },
)


def install() -> types.ModuleType:
    """Makes ``toy.py`` importable as ``longseq.toy``, registers the domain, and returns the
    module."""
    module = sys.modules.get("longseq.toy")
    if module is None:
        module = sys.modules["longseq.toy"] = types.ModuleType("longseq.toy")
        path = Path(__file__).with_name("toy.py")
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    register_domain(DOMAIN)
    return module
