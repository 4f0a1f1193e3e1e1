"""``longseq timeseries import``: published Informer, Autoformer, SpaceTime and TPGN weights as
checkpoints of ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longseq.core.checkpoints.layouts import Tensors, read_state_dict
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, check_writable, refuse_overwriting, require_file
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.protocols import list_protocols
from longseq.timeseries.forecast_task import ForecastTask
from longseq.timeseries.options import add_roles, roles_of

# Authors name the folder of a run by its settings: …_sl96_ll48_pl24_dm512_nh8_el2_dl1_df2048_…
_IN_NAME = {"sl": "context", "ll": "label", "pl": "horizon", "nh": "n_heads", "fc": "factor"}
_CARRIED = ("module.", "model.")
_FILE = "checkpoint.pth"  # in the folder of a run


@dataclass(frozen=True)
class Published:
    """A published layout.

    Attributes:
        task: name of our task.
        mark: a tensor that only this layout has.
        sizes: hyper-parameters that follow from the tensors' shapes.
        asked: those that do not, with the authors' usual values; None where there is none.
    """

    task: str
    mark: str
    sizes: Callable[[Tensors], dict[str, Any]]
    asked: dict[str, int | None]


def _count(state: Tensors, pattern: str) -> int:
    return len({m[1] for key in state if (m := re.match(pattern, key))})


def _transformer(state: Tensors) -> dict[str, Any]:
    width, channels, _ = state["enc_embedding.value_embedding.tokenConv.weight"].shape
    return {
        "channels": channels,
        "features": state["enc_embedding.temporal_embedding.embed.weight"].shape[1],
        "d_model": width,
        "d_ff": state["encoder.attn_layers.0.conv1.weight"].shape[0],
        "e_layers": _count(state, r"encoder\.attn_layers\.(\d+)\."),
        "d_layers": _count(state, r"decoder\.layers\.(\d+)\."),
    }


def _informer(state: Tensors) -> dict[str, Any]:
    distil = any(key.startswith("encoder.conv_layers.") for key in state)
    return {**_transformer(state), "distil": distil, "compat": True}


def _autoformer(state: Tensors) -> dict[str, Any]:
    return {**_transformer(state), "compat": True}


def _spacetime(state: Tensors) -> dict[str, Any]:
    width, states = state["decoder.blocks.ssm.a"].shape
    return {"d_model": width, "d_state": states, "compat": True}


def _tpgn(state: Tensors) -> dict[str, Any]:
    rows = state["TPGN.LNN_dim.fc.weight"].shape[2]
    wide, width, _ = state["TPGN.LNN_dim.fc.weight"].shape
    inputs = state["TPGN.s_t_p_e.fc_row.weight"].shape[1]
    period = state["TPGN.s_t_p_e.fc_row.weight"].shape[2]
    channels = wide // width
    ahead = state["TPGN.fc.weight"].shape[0] // channels
    return {
        "channels": channels,
        "features": inputs - 1,
        "d_model": width,
        "period": period,
        "context": rows * period,
        "horizon": ahead * period,
    }


LAYOUTS = {
    "informer": Published(
        "Informer",
        "projection.bias",
        _informer,
        {"context": None, "horizon": None, "label": None, "n_heads": 8, "factor": 5},
    ),
    "autoformer": Published(
        "Autoformer",
        "decoder.layers.0.projection.weight",
        _autoformer,
        {
            "context": None,
            "horizon": None,
            "label": None,
            "n_heads": 8,
            "factor": 3,
            "moving_average": 25,
        },
    ),
    "spacetime": Published(
        "SpaceTime",
        "decoder.blocks.ssm.k",
        _spacetime,
        {"context": None, "horizon": None, "norm_order": 1},
    ),
    "tpgn": Published("TPGN", "TPGN.LNN_dim.gate.weight", _tpgn, {}),
}


def read_published(source: str | Path, **settings: int | None) -> ForecastTask:
    """Returns the task that published weights are of, in evaluation mode and with the authors'
    behaviour (``compat``).

    Sizes are read from the weights' shapes; what these cannot say is taken from ``settings``, then
    from the name of the folder (``…_sl96_ll48_pl24_…_nh8_…``), then the authors' usual value.

    Args:
        source: the file of weights (``checkpoint.pth``), or its folder.
        **settings: ``context``, ``horizon``, ``label``, ``n_heads``, ``factor``,
            ``moving_average``, ``norm_order``; None where not known.

    Raises:
        DataError: if the weights are of no such model, or not whole.
        ConfigError: if a setting is not known, or not one of the layout's.
    """
    from longseq.timeseries import task as tasks

    path = Path(source)
    path = path / _FILE if path.is_dir() else path
    state = _plain(read_state_dict(require_file(path, "file of weights")))
    layout = next((one for one in LAYOUTS.values() if one.mark in state), None)
    if layout is None:
        raise DataError(
            f"is of none of the layouts {', '.join(LAYOUTS)}: it begins with "
            f"{', '.join(list(state)[:3])}",
            path=path,
        )
    try:
        sizes = layout.sizes(state)
    except (KeyError, ValueError) as error:
        raise DataError(f"is no whole {layout.task}: {error} is not as published", path=path) from (
            error
        )
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in layout.asked:
            raise ConfigError(f"{path}: {layout.task} takes no {name}: its weights say it")
    named = _from_name(path.absolute().parent.name)
    for name, usual in layout.asked.items():
        value = given.get(name, named.get(name, usual))
        if value is None:
            raise ConfigError(
                f"{path}: the weights do not say {name}, nor does the folder's name: --{name}"
            )
        sizes[name] = value
    task: ForecastTask = getattr(tasks, layout.task)(**sizes)
    assert task.model is not None
    check_state_dict(task.model, state, path)  # type: ignore[arg-type]
    task.model.load_state_dict(state, strict=True)  # type: ignore[union-attr, operator]
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    task.facts = {"imported": {"layout": layout.task, "file": path.name, "sha256": checksum}}
    return task.eval()


def _plain(state: Tensors) -> Tensors:
    """Returns the weights without the prefix of a wrapper around the whole model."""
    for prefix in _CARRIED:
        if state and all(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _from_name(name: str) -> dict[str, int]:
    """Returns the settings that the name of a run's folder says."""
    found = re.findall(r"_([a-z]{2})(\d+)(?=_|$)", name)
    return {_IN_NAME[key]: int(value) for key, value in found if key in _IN_NAME}


def write_task(task: ForecastTask, path: str | Path) -> None:
    """Writes a task as a checkpoint that ``predict``, ``test`` and ``compare`` take.

    Args:
        task: with its facts.
        path: ending in .ckpt.
    """
    from lightning.pytorch import Trainer

    trainer = Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False
    )
    trainer.strategy.connect(task)
    with atomic_path(path) as temporary:
        trainer.save_checkpoint(temporary)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq timeseries import``."""
    parser = CommandParser(
        prog="longseq timeseries import",
        description="Reads published weights of Informer, Autoformer, SpaceTime or TPGN and writes "
        "a checkpoint of ours, with the scaler of the training rows of the file that they were "
        "trained on. Nothing is executed, nothing is downloaded.",
    )
    parser.add_argument("source", help="file of weights (checkpoint.pth), or its folder")
    parser.add_argument("--data", required=True, help="file that the model was trained on")
    protocols = ", ".join(list_protocols())
    parser.add_argument("--protocol", default="ratio", help=f"{protocols}, or a YAML file (ratio)")
    parser.add_argument("--series", help="names of the series to take, by commas (all)")
    parser.add_argument("--out", required=True, help=".ckpt file to write")
    names = dict.fromkeys(name for one in LAYOUTS.values() for name in one.asked)
    for name in names:
        parser.add_argument(f"--{name}", type=int, help="where the folder's name does not say it")
    add_roles(parser)
    args = parser.parse_args(argv)
    if Path(args.out).suffix != ".ckpt":
        raise ConfigError(f"--out must end in .ckpt, got {args.out}")
    check_writable(args.out)
    refuse_overwriting(args.out, [Path(args.source) / _FILE], "--out ")
    task = read_published(args.source, **{name: getattr(args, name) for name in names})
    series = None if args.series is None else args.series.split(",")
    roles = vars(roles_of(args))
    data = ForecastData(args.data, args.protocol, task.context, task.horizon, series, **roles)
    data.setup()
    task.check_data(data)
    task.facts = {**task.facts, **data.facts()}
    write_task(task, args.out)
    count = sum(p.numel() for p in task.parameters())
    print(f"{args.out}: {type(task).__name__} of {count:,} parameters")
    return 0
