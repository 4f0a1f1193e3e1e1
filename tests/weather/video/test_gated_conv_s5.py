"""ConvS5 between gates: the recurrence in NumPy, parallel = sequential = chunked, equal size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.training.optim import parameter_groups
from longseq.weather.forecasting.forecast import SETTINGS
from longseq.weather.forecasting.models import FlowModel
from longseq.weather.forecasting.task import FlowForecaster
from longseq.weather.video.gated_conv_s5 import GatedConvS5, GatedConvS5Block
from longseq.weather.video.task import VideoForecaster


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_it_is_the_recurrence(size) -> None:
    torch.manual_seed(0)
    layer = GatedConvS5(3, 8, kernel=1, dt_min=0.05, dt_max=1.0).double()
    get = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    rates = get["core.Lambda_re"] + 1j * get["core.Lambda_im"]
    a = np.exp(rates * np.exp(get["core.log_step"][:, 0]))
    b = (get["core.B"][..., 0] + 1j * get["core.B"][..., 1]) * ((a - 1) / rates)[:, None]
    c = get["core.C"][0, 0, ..., 0] + 1j * get["core.C"][0, 0, ..., 1]
    u = np.random.default_rng(0).standard_normal((5, 3, *size))
    x = np.zeros((4, *size), dtype=complex)
    expected = []
    for frame in u:
        made = np.einsum("oi,ihw->ohw", get["input.weight"][..., 0, 0], frame)
        i, o, g = np.split(made + get["input.bias"][:, None, None], 3)
        entered = sigmoid(i) * g
        x = a[:, None, None] * x + np.einsum("pu,uhw->phw", b, entered)
        y = 2 * np.einsum("pu,phw->uhw", c, x).real
        y = y + np.einsum("oi,ihw->ohw", get["core.D.weight"][..., 0, 0], entered)
        y = np.einsum("oi,ihw->ohw", get["out.weight"][..., 0, 0], sigmoid(o) * y)
        expected.append(y + get["out.bias"][:, None, None])
    with torch.no_grad():
        y, state = layer(torch.from_numpy(u)[None])
    assert np.abs(y[0].numpy() - np.stack(expected)).max() < 1e-12
    assert np.abs(state["ssm"][0].numpy() - x).max() < 1e-12


@pytest.mark.parametrize("edges", ["zeros", "circular"])
@pytest.mark.parametrize(("cut", "read_kernel"), [(1, None), (4, None), (7, 1), (4, 1), (4, 5)])
def test_whole_is_chunked_is_stepped(edges, cut, read_kernel) -> None:
    torch.manual_seed(0)
    block = GatedConvS5Block(4, 8, groups=2, edges=edges, read_kernel=read_kernel).double()
    u = torch.randn(2, 7, 4, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        whole, last = block(u)
        parts, carried = [], None
        for part in (u[:, :cut], u[:, cut:]):
            if part.shape[1]:
                y, carried = block(part, carried)
                parts.append(y)
        state, frames = block.ssm.init_state(2, 3, 5), []
        for frame in u.unbind(1):
            y, state = block.step(frame, state)
            frames.append(y)
        assert block.ssm.core.C.shape[:2] == (read_kernel or 3,) * 2
        later = u.clone()
        later[:, 4:] += 1
        torch.testing.assert_close(block(later)[0][:, :4], whole[:, :4], atol=1e-12, rtol=0)
        assert not torch.allclose(block(later)[0][:, 4:], whole[:, 4:], atol=1e-3)
    for other in (torch.cat(parts, 1), torch.stack(frames, 1)):
        torch.testing.assert_close(other, whole, atol=1e-12, rtol=0)
    for other in (carried, state):
        torch.testing.assert_close(other["ssm"], last["ssm"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("edges", ["zeros", "circular"])
def test_states_that_are_read_where_they_lie(edges) -> None:
    """As by a kernel of three points a side with zeros around its middle."""
    torch.manual_seed(0)
    light, whole = (GatedConvS5(4, 8, edges=edges, read_kernel=side).double() for side in (1, None))
    own = light.state_dict()
    c = torch.zeros_like(whole.core.C)
    c[1, 1] = own["core.C"][0, 0]
    whole.load_state_dict({**own, "core.C": c})
    u = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(light(u)[0], whole(u)[0], atol=1e-12, rtol=0)


def test_the_documented_ones_are_of_equal_size() -> None:
    sizes = {}
    for kind in ("conv_s5", "gated_conv_s5", "light_conv_s5", "conv_lstm"):
        task = FlowForecaster(**{"kind": kind, **SETTINGS[kind]})
        sizes[kind] = sum(one.numel() for one in task.parameters())
        task.compute({"video": torch.randn(1, 6, 2, 8, 8)})["loss"].backward()
        assert all(one.grad is not None for one in task.parameters())
    # The gated one has the fewest: it wins, or loses, with less.
    assert 0.94 < sizes["gated_conv_s5"] / sizes["conv_lstm"] <= 1
    assert 0.94 < sizes["gated_conv_s5"] / sizes["conv_s5"] <= 1
    assert sizes["light_conv_s5"] < 0.92 * sizes["gated_conv_s5"]


def test_the_states_parameters_stay_those_of_an_ssm() -> None:
    model = FlowModel(2, "gated_conv_s5", width=8, d_state=4)
    groups = parameter_groups(model, lr=1.0, ssm_lr=0.1, weight_decay=0.5)
    ssm = {id(one) for group in groups if group["lr"] == 0.1 for one in group["params"]}
    names = {name.rsplit(".", 1)[1] for name, one in model.named_parameters() if id(one) in ssm}
    assert names == {"Lambda_re", "Lambda_im", "B", "log_step"}


def test_a_video_model_takes_it() -> None:
    torch.manual_seed(0)
    task = VideoForecaster(depths=[8], d_state=4, core="gated_conv_s5", context=3, own="rollout")
    loss = task.compute({"video": torch.rand(2, 6, 1, 8, 8)})["loss"]
    loss.backward()
    assert all(one.grad is not None for one in task.parameters())
    frames = task.eval()(torch.rand(2, 3, 1, 8, 8), 4)
    assert frames.shape == (2, 4, 1, 8, 8) and frames.isfinite().all()


def test_wrong_arguments() -> None:
    wrong = {"read_kernel": 2}, {"read_kernel": 0}
    for kwargs in (*wrong, {"d_state": 3}, {"kernel": 2}, {"edges": "wrap"}, {"init": "hippo"}):
        with pytest.raises(ConfigError):
            GatedConvS5(3, **kwargs)
    for shape in ((2, 3, 4, 4), (2, 0, 3, 4, 4), (2, 3, 2, 4, 4)):
        with pytest.raises(ArgumentError, match="GatedConvS5: frames must be"):
            GatedConvS5(3, 4)(torch.zeros(shape))
