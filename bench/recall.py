"""``longseq bench recall``: what each mixer remembers after a small fixed budget, by sequence
length."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from torch import Tensor, nn

from longseq.bench.recall_report import Result, show, write
from longseq.bench.recall_tasks import IGNORE, TASKS, RecallTask, get_task
from longseq.core.backbone import Backbone
from longseq.core.command_line import CommandParser, device_name
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import list_mixers, mixer_class
from longseq.core.training.optim import parameter_groups

DEFAULT_MIXERS = ("attention", "mamba", "h3", "s4d", "slstm")
DEFAULT_TASKS = (
    "selective_copying",
    "induction_heads",
    "multi_query_recall",
    "joint_recall",
    "parity",
)
# Sizes that suit a width of 64, where a mixer's defaults are meant for hundreds.
SIZES: dict[str, dict[str, Any]] = {
    "attention": {"n_heads": 2},
    "local_attention": {"n_heads": 2, "window": 16},
    # Heads whose keys are as wide as the model: so many different keys a state can tell apart. Two
    # where heads draw their decays, which may be too quick in one.
    **{name: {"n_heads": 1} for name in ("delta_net", "gla", "retention", "transnormer")},
    **{
        name: {"n_heads": 2, "head_dim": 64, "expand_v": 1.0}
        for name in ("gated_delta_net", "gated_delta_product", "kda")
    },
}
_LONGEST_GROWING = 8192  # test length of mixers whose cost is not linear in it
_LEARNED = 0.01  # nats a question, over some twenty steps
_TEST_SEED = 2**40  # training draws from seeds below, so that no test batch is a training batch
_TEST_BATCH, _TEST_BATCHES = 64, 4
_TEST_TOKENS = 1 << 16  # at a time


@dataclass(frozen=True)
class Settings:
    """How every model is made and trained.

    Attributes:
        d_model: width.
        n_layers: layers of mixer and MLP.
        mlp_ratio: MLP width over d_model.
        tokens: in a step, whatever the length: 2048 are 32 sequences of 64 or 128 of 16.
        lr: highest learning rate.
        weight_decay: of matrices.
        steps: of training for each model, at most; a run then repeats exactly, on a busy machine
            too.
        budget: seconds of training for each model in place of steps.
        seed: of weights and data.
        device: where.
    """

    d_model: int = 64
    n_layers: int = 2
    mlp_ratio: float = 2.0
    tokens: int = 2048
    lr: float = 5e-3
    weight_decay: float = 0.01
    steps: int = 600
    budget: float | None = None
    seed: int = 0
    device: str = "cpu"


def mixer_options(mixer: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the options that ``name:option=value:…`` stands for.

    Raises:
        ConfigError: if an option has no value.
    """
    name, *pairs = mixer.split(":")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals or not value:
            raise ConfigError(f"--mixers: {mixer!r} has {pair!r} where option=value was expected")
        options[key] = yaml.safe_load(value)
    return name, options


class RecallModel(nn.Module):
    """Embedding, backbone, linear head: tokens (B, L) to logits (B, L, vocabulary).

    Args:
        vocabulary: number of tokens.
        mixer: name of a mixer, with options of its own as ``name:option=value:…``.
        settings: sizes.
    """

    def __init__(self, vocabulary: int, mixer: str, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, settings.d_model)
        nn.init.normal_(self.embedding.weight, std=0.5)
        name, options = mixer_options(mixer)
        self.backbone = Backbone(
            settings.d_model,
            settings.n_layers,
            mixer=name,
            mixer_kwargs=SIZES.get(name, {}) | options,
            mlp_ratio=settings.mlp_ratio,
        )
        self.head = nn.Linear(settings.d_model, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits of the label at every position."""
        return self.head(self.backbone(self.embedding(tokens))[0])


def _due(task: RecallTask, done: float) -> int:
    """Returns how many of the training lengths take part when a share ``done`` of the budget is
    spent."""
    return min(len(task.train_lengths), 1 + int(done * 1.5 * len(task.train_lengths)))


def train(model: RecallModel, task: RecallTask, settings: Settings) -> Iterator[tuple[float, int]]:
    """Trains on the task's training lengths in turn and yields each step's loss and number of
    tokens.

    The learning rate rises over the first twentieth of the budget and falls as a cosine. Lengths
    join one by one, the shortest first, each when the ones before it are learned and all by two
    thirds of the budget: recall is learned suddenly or not at all, and sooner from few keys.
    Training ends early when nothing is left to learn.

    Args:
        model: on its device.
        task: what to train on.
        settings: budget, batch, learning rates and seed.
    """
    groups = parameter_groups(model, settings.lr, settings.weight_decay)
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start, recent, joined, step = time.perf_counter(), 1.0, 0, 0
    while True:
        if step == 1:
            start = time.perf_counter()  # the first step loads and compiles: not the mixer's time
        done = step / settings.steps
        if settings.budget is not None:
            done = (time.perf_counter() - start) / settings.budget if step else 0.0
        if done >= 1 or (recent < _LEARNED and joined == len(task.train_lengths)):
            return
        if _due(task, done) > joined or recent < _LEARNED:
            joined, recent = max(_due(task, done), joined + 1), 1.0
        factor = min(1.0, done / 0.05 + 1e-3) * (0.525 + 0.475 * math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * factor
        length = task.train_lengths[step % joined]
        batch = max(1, settings.tokens // length)
        tokens, labels = task.sample(batch, length, settings.seed * 10_000_000 + step)
        asked = labels != IGNORE
        logits = model(tokens.to(settings.device))[asked.to(settings.device)]
        loss = F.cross_entropy(logits, labels[asked].to(settings.device))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        recent = 0.95 * recent + 0.05 * loss.item()
        yield loss.item(), tokens.numel()


@torch.no_grad()
def accuracy(model: RecallModel, task: RecallTask, length: int, settings: Settings) -> float:
    """Returns the share of questions answered rightly in test sequences of ``length``."""
    right, questions = 0, 0
    # Very long sequences are few: a batch of them would not fit into the memory.
    rows = max(1, min(_TEST_BATCH, _TEST_TOKENS // length))
    for batch in range(_TEST_BATCHES):
        tokens, labels = task.sample(
            rows, length, _TEST_SEED + settings.seed * _TEST_BATCHES + batch
        )
        asked = labels != IGNORE
        answers = model(tokens.to(settings.device)).argmax(-1).cpu()
        right += int((answers[asked] == labels[asked]).sum())
        questions += int(asked.sum())
    return right / questions


def measure(mixer: str, task: RecallTask, lengths: Sequence[int], settings: Settings) -> Result:
    """Trains a model of one mixer on one task and tests it at every length.

    Args:
        mixer: name, with options as for ``RecallModel``.
        task: what to learn.
        lengths: to test at; those beyond 8192 only where the mixer's state does not grow.
        settings: how.
    """
    torch.manual_seed(settings.seed)
    model = RecallModel(task.vocabulary, mixer, settings).to(settings.device)
    model.train()
    losses: list[float] = []
    start, tokens = time.perf_counter(), 0
    for loss, read in train(model, task, settings):
        if not losses:
            start = time.perf_counter()
        else:
            tokens += read
        losses.append(loss)
    seconds = time.perf_counter() - start
    model.eval()
    finite = mixer_class(mixer_options(mixer)[0]).finite_state
    tested = [length for length in lengths if finite or length <= _LONGEST_GROWING]
    last = losses[-50:]
    return Result(
        task=task.name,
        mixer=mixer,
        parameters=sum(p.numel() for p in model.backbone.parameters()),
        state=model.backbone.state_size(max(task.train_lengths)),
        steps=len(losses),
        seconds=seconds,
        tokens_per_second=tokens / max(seconds, 1e-9),
        loss=sum(last) / len(last),
        accuracy={length: accuracy(model, task, length, settings) for length in tested},
    )


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="longseq bench recall",
        description="Trains a small model of each mixer on synthetic recall tasks and tests it by "
        "length.",
    )
    defaults = Settings()
    parser.add_argument(
        "--mixers",
        type=_list,
        default=list(DEFAULT_MIXERS),
        metavar="a,b",
        help="causal mixers, each with options of its own as name:option=value:…, or all; "
        f"{','.join(DEFAULT_MIXERS)} if not given",
    )
    parser.add_argument(
        "--tasks",
        type=_list,
        default=list(DEFAULT_TASKS),
        metavar="a,b",
        help=f"of {', '.join(TASKS)}",
    )
    parser.add_argument(
        "--lengths", type=_list, metavar="n,m", help="test lengths in place of each task's own"
    )
    parser.add_argument(
        "--steps", type=int, default=defaults.steps, help="of training per model, at most"
    )
    parser.add_argument(
        "--budget", type=float, help="seconds of training per model, in place of steps"
    )
    parser.add_argument("--width", type=int, default=defaults.d_model, help="of the models")
    parser.add_argument("--depth", type=int, default=defaults.n_layers, help="layers")
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="in a step of training")
    parser.add_argument("--lr", type=float, default=defaults.lr, help="highest learning rate")
    parser.add_argument(
        "--out", type=Path, default=Path("recall"), metavar="DIR", help="folder of the results"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of weights and data")
    parser.add_argument("--device", type=device_name, default=defaults.device, help="cpu, cuda, …")
    return parser


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--lengths takes positive whole numbers, got {text!r}")
    return int(text)


def run(argv: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit status.

    Args:
        argv: arguments after ``longseq bench recall``.

    Raises:
        ConfigError: for an unknown mixer, task or a wrong length, before anything is trained.
    """
    options = _parser().parse_args(list(argv))
    if options.steps < 1 or (options.budget is not None and options.budget <= 0):
        raise ConfigError("--budget and --steps must be above 0")
    if min(options.width, options.depth, options.tokens, options.lr) <= 0:
        raise ConfigError("--width, --depth, --tokens and --lr must be above 0")
    tasks = [get_task(name) for name in options.tasks]
    if options.mixers == ["all"]:
        options.mixers = [name for name in list_mixers() if mixer_class(name).causal]
    for mixer in options.mixers:
        if not mixer_class(mixer_options(mixer)[0]).causal:
            raise ConfigError(f"--mixers takes causal mixers: {mixer!r} would read the answers")
    if not tasks or not options.mixers:
        raise ConfigError("--tasks and --mixers need at least one name each")
    lengths = sorted({_whole(text) for text in options.lengths or ()})
    for task in tasks:
        for length in lengths:
            # A length that a task cannot have is refused now, not after training.
            task.sample(1, length, 0)
    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device {options.device!r}: {str(error).splitlines()[0]}") from error
    settings = Settings(
        d_model=options.width,
        n_layers=options.depth,
        tokens=options.tokens,
        lr=options.lr,
        steps=options.steps,
        budget=options.budget,
        seed=options.seed,
        device=options.device,
    )
    for mixer in options.mixers:
        RecallModel(2, mixer, settings)  # options that do not fit are refused now, too
    console, results, files = Console(), [], []
    for task in tasks:
        for mixer in options.mixers:
            result = measure(mixer, task, lengths or task.test_lengths, settings)
            results.append(result)
            scores = "  ".join(
                f"{length}: {value:.1%}" for length, value in result.accuracy.items()
            )
            line = f"{task.name}  {mixer}  {scores}  ({result.seconds:.0f} s)"
            console.print(line, highlight=False, soft_wrap=True)
        # Now: a later task may be interrupted.
        files = write(results, dataclasses.asdict(settings), options.out)
    show(results, console)
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True)
    return 0
