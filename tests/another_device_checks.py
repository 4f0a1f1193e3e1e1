"""Checks on a device that is not the CPU; prints what failed: ``python -m
tests.another_device_checks``."""

from __future__ import annotations

import copy
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from longseq.core.mixers import Mixer, create_mixer, list_mixers
from longseq.core.training import fit, seed_everything
from longseq.timeseries.data.pretraining import GeneratedSeries
from tests.another_device import NAME, begin
from tests.small_mixers import SMALL

WIDTH, LENGTH = 16, 21


def outputs(mixer: Mixer, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns what a mixer makes of (2, L, D) in each of its modes."""
    whole, state = mixer(x)
    if not mixer.causal:
        return [whole]
    ids = (torch.arange(LENGTH, device=x.device) >= 5).int().expand(2, -1)
    more, _ = mixer(x, state)
    stepped, state = [], mixer.init_state(2, x.device, x.dtype)
    for t in range(3):
        y, state = mixer.step(x[:, t], state)
        stepped.append(y)
    return [whole, more, mixer(x, None, ids)[0], torch.stack(stepped, 1)]


def check_mixer(name: str, kwargs: dict[str, Any], device: torch.device) -> None:
    """Compares a mixer's outputs and gradients with those of its copy on the CPU."""
    torch.manual_seed(0)
    kwargs = {key: value for key, value in kwargs.items() if key != "tied"}  # see another_device
    here: Mixer = create_mixer(name, WIDTH, **kwargs)
    there = copy.deepcopy(here).to(device)
    x = torch.randn(2, LENGTH, WIDTH)
    # Not the outputs' squares: their sum is nearly constant behind a norm, its gradient rounding.
    weights = torch.randn(LENGTH, WIDTH)
    found = []
    for mixer, values in ((here, x.clone()), (there, x.to(device))):
        values.requires_grad_()
        made = outputs(mixer, values)
        sum((y * weights[: y.shape[1]].to(y.device)).sum() for y in made).backward()
        grads = [values.grad, *(p.grad for p in mixer.parameters())]
        found.append([one.detach().cpu() for one in (*made, *grads) if one is not None])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found):
        # CPU kernels against torch's own operations, in float32: sums of some thousand terms.
        bound = 1e-4 * max(float(one.abs().max()), 1e-3)
        assert torch.allclose(one, other, rtol=0, atol=bound), float((one - other).abs().max())


class Elsewhere(Accelerator):
    """The device for Lightning."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def genomics() -> tuple[Any, Any]:
    from longseq.genomics import CausalLanguageModel, GenomeData

    # Not Mamba: the reference of its scan takes a minute for what is streamed in validation.
    task = CausalLanguageModel(d_model=16, n_layers=2, mixer="gla")
    return task, GenomeData("genomics/samples/tiny.fa", length=64, batch_size=2)


def forecasting() -> tuple[Any, Any]:
    from longseq.timeseries import ForecastData, MixerForecaster

    data = ForecastData("electricity_demand", context=48, horizon=24, batch_size=4)
    return MixerForecaster(context=48, horizon=24, d_model=16, n_layers=1), data


def zero_shot() -> tuple[Any, Any]:
    from longseq.timeseries.zero_shot_task import ZeroShot

    data = GeneratedSeries(batch_size=4, steps_per_epoch=2, valid_batches=1)
    return ZeroShot(), data


def images() -> tuple[Any, Any]:
    from longseq.vision import ImageClassifier, ImageData

    data = ImageData("fashion_mnist_sample", batch_size=4, img_size=28)
    return ImageClassifier(model="hybrid_nano", num_classes=10, img_size=28, in_chans=3), data


def climate() -> tuple[Any, Any]:
    from longseq.weather import ClimateEmulator, ScenarioData

    return ClimateEmulator(), ScenarioData(["A1B_north_america"], "E1_north_america")


TASKS: dict[str, Callable[[], tuple[Any, Any]]] = {
    one.__name__: one for one in (genomics, forecasting, zero_shot, images, climate)
}


def check_task(name: str, device: torch.device) -> None:
    """Trains, validates and tests a task on a device, for some steps each."""
    seed_everything(0)
    task, data = TASKS[name]()
    limits = {"limit_val_batches": 1, "limit_test_batches": 1}
    with tempfile.TemporaryDirectory() as folder:

        def strategy() -> SingleDeviceStrategy:
            return SingleDeviceStrategy(device=device, accelerator=Elsewhere())

        run = fit(
            task, data, out=folder, max_steps=2, strategy=strategy(), progress="lines", **limits
        )
        assert run.best is not None, "nothing was validated"
        if isinstance(data, GeneratedSeries):
            return  # which have no test
        trainer = lightning.Trainer(strategy=strategy(), logger=False, barebones=False, **limits)
        trainer.test(task, data, verbose=False)


def main(kinds: list[str]) -> int:
    """Checks "mixers", "tasks" or both; returns how many failed."""
    device, failed = begin(), 0
    todo: list[tuple[str, Callable[[], None]]] = []
    if "mixers" in kinds:
        for name in list_mixers():
            for kwargs in SMALL.get(name, [{}]):
                todo.append(
                    (f"{name} {kwargs}", lambda n=name, k=kwargs: check_mixer(n, k, device))
                )
    wanted = [name for name in TASKS if name in kinds or "tasks" in kinds]
    todo += [(name, partial(check_task, name, device)) for name in wanted]
    for what, check in todo:
        try:
            check()
        except Exception:  # noqa: BLE001 - all that fail are told
            failed += 1
            print(f"FAILED {what}\n{traceback.format_exc()}", flush=True)
    print(f"{len(todo) - failed} of {len(todo)} passed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
