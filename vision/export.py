"""Models as ONNX or torch programs that run without longseq, checked against the model itself."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, check_writable
from longseq.core.ops.portable import portable
from longseq.core.training.task import BaseTask
from longseq.vision.segmentation import Segmentation
from longseq.vision.task import ImageClassifier, add_mirrored, load_classifier, take_mirrored

SUFFIXES = (".onnx", ".pt2")
TOLERANCE = 1e-4
"""Largest difference from the model, relative to its greatest logit."""


LARGE = 1000
"""Operations from which an ONNX file is written as it is: simplifying it takes as long as making
it, and runtimes do so when they load it. 8-bit weights need it in any case."""


class WithPixels(nn.Module):
    """A model behind its normalisation: it takes values from 0 to 1.

    Args:
        model: of normalised images.
        mean: of every channel.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), from 0 to 1."""
        return self.model((images - self.mean) / self.std)


def export(
    model: nn.Module,
    path: str | Path,
    shape: tuple[int, int, int],
    facts: Mapping[str, Any] | None = None,
    int8: bool = False,
) -> float:
    """Writes a model for images of one size, in batches of any, and checks what was written.

    Args:
        model: takes (B, C, H, W).
        path: ``.onnx``, or ``.pt2`` for ``torch.export.load``.
        shape: (C, H, W).
        facts: what a user of the file must know, kept in it as JSON under ``longseq``.
        int8: whether the weights of linear maps are kept in 8 bits (ONNX); that changes the
            results, and is not checked against ``TOLERANCE``.

    Returns:
        The largest difference of two random batches' logits from the model's.

    Raises:
        ConfigError: for another suffix, a missing package, or a model that cannot be exported.
        DataError: if what was written gives other results; nothing is left then.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: an exported model must end in .onnx or .pt2")
    if int8 and target.suffix != ".onnx":
        raise ConfigError("int8 needs an .onnx file")
    check_writable(target)
    if target.suffix == ".onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(name) is None:
                raise ConfigError(f'ONNX needs {name}: pip install "longseq[export]"')
    model = model.eval().to("cpu")
    program = _program(model, shape)
    notes = json.dumps(dict(facts or {}))
    with atomic_path(target) as temporary:
        if target.suffix == ".pt2":
            # torch.export.save insists on the suffix.
            with tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
                whole = Path(folder) / "model.pt2"
                torch.export.save(program, whole, extra_files={"longseq": notes})
                whole.replace(temporary)
            run = _torch_runner(temporary)
        else:
            _write_onnx(program, temporary, notes, int8)
            run = _onnx_runner(temporary)
        difference, scale = _compare(model, run, shape)
        if not difference <= TOLERANCE * scale and not int8:
            raise DataError(
                f"the exported model's logits differ by {difference:.2g}, more than {TOLERANCE:g} "
                f"of {scale:.2g}; nothing was written",
                path=path,
            )
    return difference


def _program(model: nn.Module, shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Returns a model as a program of torch's own operations, the batch left open."""
    example = torch.rand(2, *shape)
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        return portable(
            torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own progress and advice, which concern its authors."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _write_onnx(program: torch.export.ExportedProgram, path: Path, notes: str, int8: bool) -> None:
    import onnx

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole, small = str(Path(folder) / "model.onnx"), str(Path(folder) / "int8.onnx")
        with _quiet():
            try:
                torch.onnx.export(
                    program,
                    (),
                    whole,
                    dynamo=True,
                    external_data=False,
                    input_names=["images"],
                    output_names=["logits"],
                    verbose=False,
                    optimize=int8 or len(program.graph.nodes) <= LARGE,
                )
            except torch.onnx.OnnxExporterError as error:
                reason = str(error).rpartition("## Exception summary")[2].strip().splitlines()[0]
                raise ConfigError(
                    f"the model has no ONNX form ({reason}); a .pt2 file may hold it"
                ) from error
            if int8:
                from onnxruntime.quantization import QuantType, quantize_dynamic

                quantize_dynamic(
                    whole,
                    small,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=["MatMul", "Gemm"],
                )
        made = onnx.load(small if int8 else whole)
        onnx.helper.set_model_props(made, {"longseq": notes})
        path.write_bytes(made.SerializeToString())


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _torch_runner(path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file, _quiet():
        return torch.export.load(file).module()  # type: ignore[arg-type]


def _compare(
    model: nn.Module, run: Callable[[Tensor], Tensor], shape: tuple[int, int, int]
) -> tuple[float, float]:
    """Returns the largest difference on random batches of 1 and 3, and the greatest logit."""
    generator, worst, scale = torch.Generator().manual_seed(0), 0.0, 0.0
    for batch in (1, 3):
        x = torch.rand(batch, *shape, generator=generator)
        with torch.inference_mode():
            expected, found = model(x), run(x)
        worst = max(worst, float((expected - found).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    return (worst if np.isfinite(worst) else float("inf")), scale


def export_task(
    task: BaseTask, path: str | Path, size: int | None = None, int8: bool = False
) -> tuple[tuple[int, int, int], float]:
    """Writes a classifier's or segmentation's model behind its normalisation.

    Args:
        task: in evaluation mode.
        path: see ``export``.
        size: side of the images in pixels; that of the training if None.
        int8: see ``export``.

    Returns:
        The shape of an image (C, H, W), and the difference from the model.
    """
    if not isinstance(task, (ImageClassifier, Segmentation)):
        raise ConfigError(f"a {type(task).__name__} cannot be exported by longseq vision export")
    how = dict(task.preprocess)
    if not how:
        raise ConfigError(
            "the checkpoint does not say how images are prepared: it was never fitted"
        )
    own = how["img_size"] if isinstance(task, ImageClassifier) else how["tile"]
    side = check_positive("size", int(size or own))
    model = task.best if isinstance(task, ImageClassifier) else task.model
    kind: dict[str, Any]
    if isinstance(task, Segmentation):
        kind = {"values": task.values}
    else:
        kind = {"mirrored": task.mirrored}
    facts = {"classes": task.classes, "preprocess": how, **kind}
    shape = (int(task.in_chans), side, side)
    return shape, export(WithPixels(model, how["mean"], how["std"]), path, shape, facts, int8)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision export``."""
    parser = CommandParser(
        prog="longseq vision export",
        description="A model as ONNX or as a torch program, for images from 0 to 1 of one size in "
        "batches of any; its results are compared with the model's before the file is kept.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint, or published weights")
    parser.add_argument("--model", help="of published weights: one of longseq vision models")
    parser.add_argument("--out", required=True, help=".onnx, or .pt2 (torch.export.load)")
    parser.add_argument("--size", type=int, help="side of the images (that of the training)")
    add_mirrored(parser)
    parser.add_argument("--int8", action="store_true", help="linear maps in 8 bits (ONNX)")
    args = parser.parse_args(argv)
    task = load_classifier(args.ckpt_path, args.model)
    take_mirrored(task, args.mirrored, args.ckpt_path)
    shape, difference = export_task(task, args.out, args.size, args.int8)
    size = Path(args.out).stat().st_size / 1e6
    print(f"{args.out}: {size:.1f} MB; images (batch, {', '.join(map(str, shape))}) from 0 to 1")
    print(f"  largest difference from the model on random images: {difference:.2g}")
    return 0
