"""What the test of context parallelism runs on every rank: ``python ranks.py RANK SIZE FILE``."""

from __future__ import annotations

import copy
import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from longseq.core import Backbone, create_mixer, list_mixers
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers.base import mixer_class
from longseq.core.parallel import ContextParallel
from longseq.core.testing.subject import TOLERANCE

LENGTH, WIDTH = 13, 16


def close(name: str, ours: Tensor, theirs: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Requires that two tensors agree to the law's tolerance."""
    scale = max(float(theirs.abs().max()), 1e-3) if theirs.numel() else 1.0
    far = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    assert ours.shape == theirs.shape and far <= TOLERANCE[dtype] * scale, f"{name}: {far}"


def agree(model: nn.Module, x: Tensor, ids: Tensor | None, context: ContextParallel) -> None:
    """Requires that a model over all ranks is the model on one: output, loss, gradients."""
    whole = copy.deepcopy(model)
    x = x.detach().requires_grad_()
    weights = torch.linspace(-1, 1, x.shape[1] * x.shape[2], dtype=x.dtype).view(1, *x.shape[1:])
    y = whole(x, None, ids)[0]
    loss = (y * weights).sum() / x.shape[1]
    loss.backward()
    part = context.split(x.detach()).clone().requires_grad_()
    my_ids = None if ids is None else context.split(ids)
    with context(model):
        mine = model(part, None, my_ids)[0]
    own = context.mean((mine * context.split(weights)).sum(), part.shape[1])
    own.backward()
    context.reduce_gradients(model)
    close("output", mine.detach(), context.split(y.detach()))
    close("loss", own.detach(), loss.detach())
    close("gradient of the input", part.grad, context.split(x.grad))
    for (name, a), b in zip(model.named_parameters(), whole.parameters()):
        close(f"gradient of {name}", a.grad, torch.zeros_like(b) if b.grad is None else b.grad)


def packed() -> Tensor:
    """Returns ids whose segments begin at, before and after the ranks' borders."""
    rows = [[0] * 4 + [1] * 3 + [2] * 6, [0] * 7 + [1] * 6, [5] * LENGTH]
    return torch.tensor(rows)


def check(name: str, context: ContextParallel) -> None:
    """Runs one mixer, alone and in a stack."""
    torch.manual_seed(0)
    cls = mixer_class(name)
    kwargs: dict[str, Any] = {}
    mixer = create_mixer(name, WIDTH, **kwargs).double()
    if not mixer.causal and name != "bidirectional":
        try:
            with context(mixer):
                raise AssertionError(f"{name} is not causal and was taken")
        except ConfigError:
            return
    x = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    agree(mixer, x, None, context)
    mixer.zero_grad()
    agree(mixer, x, packed(), context)
    assert cls is type(mixer)


def stacks(context: ContextParallel) -> None:
    """A stack of several kinds; fewer positions than ranks; inference; a misplaced state."""
    torch.manual_seed(0)
    pattern = ["mamba", "slstm", "local_attention"]
    stack = Backbone(WIDTH, 3, pattern, mlp_ratio=2.0).double()
    agree(stack, torch.randn(3, LENGTH, WIDTH, dtype=torch.float64), packed(), context)
    stack.zero_grad()
    agree(stack, torch.randn(2, LENGTH, WIDTH).double(), None, ContextParallel(recompute=True))
    assert all("forward" not in vars(layer.mixer) for layer in stack.residual_layers())
    stack.zero_grad()
    agree(stack, torch.randn(2, context.size - 1, WIDTH, dtype=torch.float64), None, context)
    x = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        y, states = stack(x)
        with context(stack):
            mine, own = stack(context.split(x))
        close("inference", mine, context.split(y))
        if context.rank == context.size - 1:
            for ours, theirs in zip(own, states):
                for key, value in theirs.items():
                    close(f"final state {key}", ours[key].double(), value.double())
    mixer = stack.layers[0].mixer
    if context.rank:
        try:
            with context(mixer):
                mixer(context.split(x), mixer.init_state(1))
        except ArgumentError as error:
            assert "first rank" in str(error)
        else:
            raise AssertionError("a state was taken on another rank than the first")
    assert not mixer._forward_hooks and not mixer._forward_pre_hooks


def main() -> None:
    """Runs everything; writes what failed."""
    warnings.simplefilter("ignore")
    rank, size, file = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}.store", rank=rank, world_size=size)
    context, failed = ContextParallel(), []
    for name in [*list_mixers(), ""]:
        try:
            if name:
                check(name, context)
            else:
                stacks(context)
        except Exception:  # noqa: BLE001 - every failure is the parent's to report
            failed.append(f"{name or 'stacks'}: {traceback.format_exc(limit=-2)}")
            break  # the ranks may be out of step
    (file.parent / f"{file.name}.{rank}.json").write_text(json.dumps(failed))
    if failed:
        sys.exit(1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
