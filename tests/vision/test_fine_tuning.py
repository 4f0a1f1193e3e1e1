"""Depths of parameters, frozen parts, and smaller rates below."""

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.vision.fine_tuning import parameter_depths
from longseq.vision.models.registry import create_model
from longseq.vision.task import ImageClassifier


@pytest.mark.parametrize(
    ("name", "kwargs", "blocks"),
    [
        ("resnet8", {"dims": (4, 8), "depths": (2, 1)}, 3),
        ("vmamba_pico", {"dims": (8, 16), "depths": (1, 2)}, None),
        ("vim_nano", {"d_model": 16, "depth": 3, "img_size": 8}, 3),
        ("vit_pico", {"d_model": 12, "n_layers": 2, "img_size": 8}, 2),
    ],
)
def test_depths_rise_from_the_stem_to_the_head(name, kwargs, blocks) -> None:
    model = create_model(name, **kwargs)
    depths = parameter_depths(model)
    assert list(depths) == [key for key, _ in model.named_parameters()]
    last = max(depths.values())
    assert depths[model.stem_key] == 0 and depths[f"{model.head_key}.weight"] == last
    assert set(depths.values()) == set(range(last + 1))
    if blocks is not None:
        assert last == blocks + 1


def test_a_stages_halving_lies_behind_its_blocks() -> None:
    depths = parameter_depths(create_model("vmamba_pico", dims=(8, 16), depths=(2, 1)))
    first = [d for name, d in depths.items() if name.startswith("layers.0.blocks.1.")]
    halving = [d for name, d in depths.items() if name.startswith("layers.0.downsample")]
    second = [d for name, d in depths.items() if name.startswith("layers.1.blocks.0.")]
    assert max(first) < min(halving) and max(halving) < min(second)


def task_of(**options) -> ImageClassifier:
    kwargs = {"dims": (4, 8), "depths": (1, 1)}
    return ImageClassifier("resnet8", 3, 3, 8, model_kwargs=kwargs, **options)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rates_fall_with_the_distance_from_the_head(optimizer) -> None:
    def rates(task):
        made = task.make_optimizer()
        names = {id(p): name for name, p in task.model.named_parameters()}
        pairs = [(names[id(p)], g["lr"]) for g in made.param_groups for p in g["params"]]
        assert len(pairs) == len(dict(pairs)) == len(names)
        return dict(pairs), made

    task = task_of(layer_decay=0.5, lr=0.8, optimizer=optimizer)
    depths, (plain, _) = parameter_depths(task.model), rates(task_of(lr=0.8, optimizer=optimizer))
    found, made = rates(task)
    assert found == pytest.approx({n: 0.5 ** (3 - depths[n]) * rate for n, rate in plain.items()})
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    task.train().compute({"image": torch.rand(4, 3, 8, 8), "target": torch.tensor([0, 1, 2, 0])})[
        "loss"
    ].backward()
    made.step()
    assert all(not torch.equal(before[name], p) for name, p in task.model.named_parameters())


def test_frozen_parts_stay_as_they_are() -> None:
    torch.manual_seed(0)
    task = task_of(freeze=2, lr=0.1)
    before = {name: v.clone() for name, v in task.model.state_dict().items()}
    made = task.train().make_optimizer()
    task.compute({"image": torch.rand(4, 3, 8, 8), "target": torch.tensor([0, 1, 2, 0])})[
        "loss"
    ].backward()
    made.step()
    after = task.model.state_dict()
    for name, value in before.items():  # batch norms' moments too
        frozen = name.startswith(("stem.", "stages.0."))
        assert torch.equal(after[name], value) == frozen, name


def test_all_but_the_head_and_wrong_values() -> None:
    task = task_of(freeze=-1)
    trained = [name for name, p in task.model.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    for wrong in (-2, 4):
        with pytest.raises(ConfigError, match="freeze must lie between -1"):
            task_of(freeze=wrong)
    for wrong_decay in (0.0, 1.1):
        with pytest.raises(ConfigError, match="layer_decay must lie in"):
            task_of(layer_decay=wrong_decay)
