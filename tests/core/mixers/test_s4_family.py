"""What S4, S4D, DSS, S5 and the companion model promise beyond the mixer contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer

D_MODEL = 6
CASES: list[tuple[str, dict[str, Any]]] = [
    ("s4", {"d_state": 8}),
    ("s4", {"d_state": 64, "init": "fout", "n_ssm": 2}),
    ("s4", {"d_state": 8, "init": "legt", "rank": 3}),
    ("s4d", {"d_state": 64, "init": "inv"}),
    ("s4d", {"d_state": 16, "init": "legs", "disc": "bilinear", "activation": "silu"}),
    ("dss", {"d_state": 8}),
    ("dss", {"d_state": 8, "version": "softmax", "l_max": 700, "separate_dt": False}),
    ("s5", {"d_state": 64}),
    (
        "s5",
        {
            "d_state": 16,
            "blocks": 4,
            "init": "ptd",
            "c_init": "complex_normal",
            "activation": "none",
        },
    ),
    ("companion", {"d_state": 9, "n_kernels": 3}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_a_long_float32_sequence_in_pieces_and_packed(name: str, kwargs: dict[str, Any]) -> None:
    """Default sizes over many chunks: the contract's sequences are shorter than one."""
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL, **kwargs)
    x = data(2, 700, D_MODEL)
    with torch.no_grad():
        whole, last = mixer(x)
        state, parts = None, []
        for piece in x.split([130, 1, 300, 269], 1):
            y, state = mixer(piece, state)
            parts.append(y)
        assert state is not None
        scale = whole.abs().max()
        assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-5 * scale
        assert (state["ssm"] - last["ssm"]).abs().max() <= 1e-5 * last["ssm"].abs().max()
        ids = torch.zeros(2, 700, dtype=torch.long)
        ids[:, 333:] = 1
        packed, _ = mixer(x, segment_ids=ids)
        assert (packed[:, :333] - whole[:, :333]).abs().max() <= 1e-5 * scale
        assert (packed[:, 333:] - mixer(x[:, 333:])[0]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize(("name", "kwargs"), [c for c in CASES if c[0] in ("s4", "s4d", "dss")])
def test_the_kernel_is_the_response_to_an_impulse(name: str, kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options = {**kwargs, "activation": "none", "output": "none"}
    mixer: Any = create_mixer(name, D_MODEL, **options).double()
    impulse = torch.zeros(1, 50, D_MODEL, dtype=torch.float64)
    impulse[:, 0] = 1
    with torch.no_grad():
        response = mixer(impulse)[0][0].T
        response[:, 0] -= mixer._skip()
        kernel = mixer.convolution_kernel(50)
    assert kernel.shape == (D_MODEL, 50)
    assert (kernel - response).abs().max() <= 1e-11 * kernel.abs().max()


@pytest.mark.parametrize(("name", "kwargs"), CASES, ids=IDS)
def test_state_space_parameters_are_named(name: str, kwargs: dict[str, Any]) -> None:
    mixer = create_mixer(name, D_MODEL, **kwargs)
    # Its vectors are normalised, and take the learning rate of the rest as published.
    if name != "companion":
        assert set(mixer.ssm_parameters) & set(dict(mixer.named_parameters()))


def test_layout_of_published_checkpoints() -> None:
    shapes = {
        k: tuple(v.shape)
        for k, v in create_mixer("s4", 6, d_state=8, n_ssm=2, init="legt").state_dict().items()
    }
    assert shapes == {
        "layer.D": (1, 6),
        "layer.kernel.C": (1, 6, 4, 2),
        "layer.kernel.inv_dt": (6, 1),
        "layer.kernel.B": (1, 2, 4, 2),
        "layer.kernel.A_real": (2, 4),
        "layer.kernel.A_imag": (2, 4),
        "layer.kernel.P": (2, 2, 4, 2),
        "output_linear.0.weight": (12, 6),
        "output_linear.0.bias": (12,),
    }
    shapes = {k: tuple(v.shape) for k, v in create_mixer("s5", 6, d_state=8).state_dict().items()}
    assert shapes == {
        "Lambda_re": (4,),
        "Lambda_im": (4,),
        "B": (4, 6, 2),
        "C": (6, 4, 2),
        "D": (6,),
        "log_step": (4, 1),
        "out2.weight": (6, 6),
        "out2.bias": (6,),
    }


def test_s5_blocks_repeat_the_eigenvalues() -> None:
    eigenvalues = create_mixer("s5", 4, d_state=16, blocks=4).state_dict()["Lambda_im"]
    assert torch.equal(eigenvalues[:2], eigenvalues[2:4]) and len(eigenvalues) == 8


def test_s5_clips_growing_eigenvalues() -> None:
    mixer = create_mixer("s5", 4, d_state=8, clip_eigs=True)
    with torch.no_grad():
        mixer.Lambda_re.fill_(1.0)  # type: ignore[operator,union-attr]
    y, _ = mixer(data(1, 3000, 4))
    assert torch.isfinite(y).all()


def test_s5_step_rescale_is_another_sampling_rate() -> None:
    """Twice the step on every second sample of a slow signal gives nearly every second output."""
    torch.manual_seed(0)
    fine = create_mixer("s5", 1, d_state=8, activation="none", dt_min=1e-3, dt_max=1e-3).double()
    coarse = create_mixer("s5", 1, d_state=8, activation="none", step_rescale=2.0).double()
    coarse.load_state_dict(fine.state_dict())
    t = torch.arange(800, dtype=torch.float64) / 800
    x = torch.sin(6.28 * t).view(1, -1, 1)
    with torch.no_grad():
        every_second, rescaled = fine(x)[0][:, ::2], coarse(x[:, ::2])[0]
    assert (every_second - rescaled).abs().max() < 0.02 * every_second.abs().max()


def test_dss_softmax_weights_sum_to_one() -> None:
    """With W = Λ the kernel of each state dimension sums to 1 over l_max positions."""
    mixer: Any = create_mixer(
        "dss", 2, d_state=3, version="softmax", l_max=40, separate_dt=False
    ).double()
    with torch.no_grad():
        mixer.kernel.Lambda[0, 0] = 0.4  # one eigenvalue grows
        w = torch.view_as_complex(mixer.kernel.Lambda.clone())
        mixer.kernel.W.copy_(torch.view_as_real(w.expand(2, -1).clone()).unsqueeze(0))
        assert torch.allclose(
            mixer.convolution_kernel(40).sum(-1), torch.tensor(3.0, dtype=torch.float64), atol=1e-3
        )


@pytest.mark.parametrize("name", ["s4", "s4d", "dss", "s5", "companion"])
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL, d_state=8)
    mixer(data(2, 70, D_MODEL))[0].square().sum().backward()
    for label, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, label


def test_half_precision_parameters_keep_a_full_state() -> None:
    for name in ("s4", "s4d", "dss", "s5", "companion"):
        mixer = create_mixer(name, D_MODEL, d_state=8).to(torch.bfloat16)
        y, state = mixer(data(2, 70, D_MODEL).bfloat16())
        assert y.dtype == torch.bfloat16 and state["ssm"].dtype in (
            torch.float32,
            torch.complex64,
        ), name
        y_t, state = mixer.step(data(2, D_MODEL).bfloat16(), state)
        assert y_t.dtype == torch.bfloat16 and state["ssm"].dtype in (
            torch.float32,
            torch.complex64,
        ), name


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("s4", {"d_state": 7}, "d_state must be an even integer"),
        ("s4", {"d_state": 0}, "d_state"),
        ("s4", {"init": "leg"}, "did you mean 'leg"),
        ("s4", {"init": "legt", "rank": 1}, "rank must be at least 2"),
        ("s4", {"n_ssm": 4}, "d_model .6. must be divisible by n_ssm"),
        ("s4", {"dt_min": 0.2, "dt_max": 0.1}, "dt_min"),
        ("s4", {"dropout": 1.0}, "dropout"),
        ("s4", {"chunk_size": 0}, "chunk_size"),
        ("s4d", {"init": "line"}, "did you mean 'lin'"),
        ("s4d", {"disc": "bilinar"}, "did you mean 'bilinear'"),
        ("s4d", {"activation": "gelo"}, "did you mean 'gelu'"),
        ("s4d", {"output": "glue"}, "did you mean 'glu'"),
        ("dss", {"version": "softmax"}, "l_max"),
        ("dss", {"l_max": 10}, "l_max"),
        ("dss", {"version": "soft", "l_max": 3}, "did you mean 'softmax'"),
        ("dss", {"d_state": -1}, "d_state"),
        ("s5", {"d_state": 12, "blocks": 5}, "d_state .12. must be divisible by blocks"),
        ("s5", {"d_state": 12, "blocks": 4}, "d_state / blocks must be an even"),
        ("s5", {"activation": "half_glu"}, "did you mean 'half_glu"),
        ("s5", {"c_init": "normal"}, "c_init"),
        ("s5", {"step_rescale": 0}, "step_rescale"),
        ("companion", {"n_kernels": 4}, "must be divisible by n_kernels"),
        ("companion", {"n_kernels": 0}, "n_kernels"),
        ("companion", {"norm_order": -1}, "norm_order"),
        ("companion", {"kernel_init": "xavir"}, "did you mean 'xavier'"),
    ],
)
def test_wrong_hyper_parameters(name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_mixer(name, D_MODEL, **kwargs)
