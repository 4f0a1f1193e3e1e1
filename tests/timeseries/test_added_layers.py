"""Layers that are added to a trained network change nothing at first, and learn."""

import pytest
import torch

from longseq.core.checkpoints.safe import load_weights, save_weights
from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.data.pretraining import make_batch
from longseq.timeseries.zero_shot_task import ZeroShot

SIZES = {"pretrained": False, "d_model": 32, "hidden": 48, "local": True}


def _loss(task: ZeroShot) -> torch.Tensor:
    return task.train().compute(make_batch(0, 0, 16))["loss"]


def test_an_added_layer_changes_nothing_at_first_and_learns(tmp_path):
    torch.manual_seed(0)
    before = ZeroShot(**SIZES, n_layers=1)
    path = tmp_path / "before.safetensors"
    save_weights(path, before, {})
    torch.manual_seed(1)
    after = ZeroShot(**SIZES, n_layers=2, added_layers=1)
    load_weights(path, after)
    loss = _loss(after)
    assert loss.item() == _loss(before).item()
    loss.backward()
    layer = after.model.backbone.layers[1]
    for one in (layer.mixer.group_norm.weight, layer.mlp.fc2.weight):
        assert one.grad.abs().max() > 0
    copy = after.average.backbone.layers[1]
    assert torch.equal(copy.mixer.fgate.weight, layer.mixer.fgate.weight)


def test_the_model_alone_is_a_beginning_too(tmp_path):
    before = ZeroShot(**SIZES, n_layers=1)
    path = tmp_path / "before.safetensors"
    save_weights(path, before.model, {})
    after = ZeroShot(**SIZES, n_layers=3, added_layers=2)
    load_weights(path, after)
    assert _loss(after).item() == _loss(before).item()


def test_the_first_layer_nearly_gives_back_what_it_reads(tmp_path):
    torch.manual_seed(0)
    before = ZeroShot(**SIZES, n_layers=0)
    path = tmp_path / "before.safetensors"
    save_weights(path, before, {})
    after = ZeroShot(**SIZES, n_layers=1, added_layers=1)
    load_weights(path, after)
    gains = after.model.backbone.norm_f.weight
    # Inputs without a unit, and weights of a uniform start: embedded patches are about that large.
    assert gains.min() > 0 and not torch.equal(gains, torch.ones_like(gains))
    torch.testing.assert_close(_loss(after), _loss(before), rtol=0.1, atol=0)


def test_what_is_missing_otherwise_is_refused(tmp_path):
    path = tmp_path / "before.safetensors"
    save_weights(path, ZeroShot(**SIZES, n_layers=1), {})
    with pytest.raises(DataError, match=r"missing: .*backbone\.layers\.1\."):
        load_weights(path, ZeroShot(**SIZES, n_layers=2))
    with pytest.raises(DataError, match=r"missing: .*backbone\.layers\.1\."):
        load_weights(path, ZeroShot(**SIZES, n_layers=3, added_layers=1))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_layers": 1, "added_layers": 2}, "added_layers = 2 of n_layers = 1"),
        ({"n_layers": 1, "added_layers": 1, "mixer": "mamba"}, "sLSTM"),
        ({"n_layers": 1, "added_layers": 1, "mlp_ratio": 0.0}, "MLP"),
        ({"n_layers": 1, "added_layers": -1}, "added_layers"),
    ],
)
def test_only_slstm_layers_can_be_added(wrong, words):
    with pytest.raises(ConfigError, match=words):
        ZeroShot(**SIZES, **wrong)
