"""The recipe of docs/scale.md for sharded weights: begun on two ranks, gone on with on one, equal
to a model on one rank without it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longseq.core import LanguageModel

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)
DOCS = Path(__file__).resolve().parents[3] / "docs"


def run(script: Path, world: int, *arguments: str) -> list[float]:
    """Returns the loss of every step, as the first rank prints it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={**told, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    out = [one.communicate()[0] for one in running]
    assert [one.returncode for one in running] == [0] * world
    return [float(line.split()[1]) for line in out[0].splitlines()]


def whole(steps: int) -> list[float]:
    torch.manual_seed(0)
    model = LanguageModel(vocab_size=16, d_model=64, n_layers=4, mixer="mamba")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(16, (steps, 4, 65), generator=torch.Generator().manual_seed(1))
    losses = []
    for rows in tokens:
        logits, _ = model(rows[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_begun_on_two_ranks_and_gone_on_with_on_one(tmp_path: Path) -> None:
    text = (DOCS / "scale.md").read_text()
    (code,) = re.findall(r"```python title=\"sharded.py[^\n]*\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "sharded.py"
    script.write_text(code)
    folder = str(tmp_path / "state")
    losses = run(script, 2, folder, "0", "2")
    assert len(list(Path(folder).glob("*.distcp"))) == 2  # each rank its own part
    losses += run(script, 1, folder, "2", "3")
    assert losses == pytest.approx(whole(3), abs=2e-6)
