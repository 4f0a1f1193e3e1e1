"""Mixers and tasks on a device that is not the CPU: no tensor is left behind, and mixers compute
what they do on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.another_device import AVAILABLE


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no devices that are written in Python")
@pytest.mark.parametrize("kind", ["mixers", "tasks"])
def test_another_device(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.another_device_checks", kind],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert not done.stdout.splitlines()[-1].startswith("0 of")
