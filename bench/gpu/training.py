"""Trains every registered mixer for 200 steps under bfloat16 autocast: all numbers must stay
finite."""

from __future__ import annotations

import time

import torch

from longseq.bench.gpu.agreement import Result
from longseq.core.mixers import Mixer, create_mixer, list_mixers

STEPS = 200


def train(name: str, device: torch.device, steps: int, width: int, length: int) -> Result:
    """Trains one mixer, as its defaults make it, to give back its input of the position before.

    Args:
        name: of the mixer.
        device: where.
        steps: of the optimiser.
        width: d_model.
        length: positions.
    """
    torch.manual_seed(0)
    mixer: Mixer = create_mixer(name, width).to(device)
    optimiser = torch.optim.AdamW(mixer.parameters(), lr=3e-3)
    losses = torch.empty(steps, device=device)
    begin = time.perf_counter()
    for step in range(steps):
        x = torch.randn(4, length, width, device=device)
        # Packed in every other step; the ids only matter where the mixer is causal.
        ids = (
            (torch.arange(length, device=device) >= length // 3).int().expand(4, -1)
            if step % 2
            else None
        )
        with torch.autocast(device.type, torch.bfloat16):
            y, _ = mixer(x, None, ids)
            loss = (y.float() - x.roll(1, 1)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses[step] = loss.detach()
    finite = bool(losses.isfinite().all()) and all(
        bool(p.isfinite().all()) for p in mixer.parameters()
    )
    first, last = float(losses[0]), float(losses[-1])
    seconds = time.perf_counter() - begin
    return {
        "mixer": name,
        "steps": steps,
        "first": first,
        "last": last,
        "seconds": seconds,
        "ok": finite,
    }


def train_all(
    device: torch.device,
    deadline: float,
    steps: int = STEPS,
    width: int = 128,
    length: int = 256,
    names: list[str] | None = None,
) -> list[Result]:
    """Trains every registered mixer and prints a line for each.

    Args:
        device: where.
        deadline: of ``time.perf_counter``, after which no other training starts: it counts as not
            passed.
        steps: of each.
        width: d_model.
        length: positions.
        names: of mixers; all where not given.
    """
    found = []
    for name in list_mixers() if names is None else names:
        if time.perf_counter() > deadline:
            row: Result = {"mixer": name, "steps": 0, "ok": False, "why": "out of time"}
        else:
            try:
                row = train(name, device, steps, width, length)
            except Exception as error:  # noqa: BLE001 - the other mixers go on, and this one has not passed
                row = {
                    "mixer": name,
                    "steps": 0,
                    "ok": False,
                    "why": f"{type(error).__name__}: {error}",
                }
        print(line(row), flush=True)
        found.append(row)
    return found


def line(row: Result) -> str:
    """Returns a training's result in words."""
    if "why" in row:
        return f"  not run: {row['mixer']} ({row['why']})"
    change = f"loss {row['first']:.3f} to {row['last']:.3f}"
    verdict = "ok  finite" if row["ok"] else "BAD not finite:"
    return f"  {verdict} {row['mixer']}, {row['steps']} steps, {change}, {row['seconds']:.1f} s"
