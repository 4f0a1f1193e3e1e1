"""Context parallelism on 2 and 4 ranks against one: every mixer, packed and not, gradients too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from longseq.core.errors import ConfigError
from longseq.core.parallel import ContextParallel

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)


@pytest.mark.parametrize("size", [2, 4])
def test_many_ranks_are_one(size: int, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("ranks.py"))
    file = tmp_path / "ranks"
    commands = [[sys.executable, script, str(rank), str(size), str(file)] for rank in range(size)]
    # The others wait in vain for a rank that fails: they are stopped.
    running = [subprocess.Popen(command) for command in commands]
    try:
        while any(one.poll() is None for one in running):
            if any(one.poll() for one in running):
                break
            for one in running:
                try:
                    one.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
    finally:
        for one in running:
            one.kill()
            one.wait()
    told = [json.loads(one.read_text()) for one in sorted(tmp_path.glob("ranks.*.json"))]
    assert [one.returncode for one in running] == [0] * size, "\n".join(map(str, told))
    assert told == [[]] * size


def test_without_a_process_group_it_says_what_to_start() -> None:
    with pytest.raises(ConfigError, match="start with torchrun"):
        ContextParallel()
