"""The ``backend`` of mixers whose operators have several: stored, passed down, refused where
impossible."""

from __future__ import annotations

import json

import pytest
import torch

from longseq.core.errors import BackendError, ConfigError
from longseq.core.mixers import create_mixer
from longseq.core.ops import backends
from longseq.core.ops.backends import check_backend, convolution_backend

# The main operator of each, and a backend that it does not have, or not for CPU tensors.
MIXERS = {
    "mamba": ("selective_scan", "triton"),
    "mamba2": ("ssd", "triton"),
    "mlstm": ("mlstm", "mamba_ssm"),
    "gla": ("linear_attention", "mamba_ssm"),
    "retention": ("linear_attention", "mamba_ssm"),
    "delta_net": ("delta_rule", "mamba_ssm"),
    "gated_delta_net": ("delta_rule", "mamba_ssm"),
    "gated_delta_product": ("delta_rule", "mamba_ssm"),
    "rwkv7": ("dplr", "triton"),
    "kda": ("delta_rule", "mamba_ssm"),
}


@pytest.mark.parametrize("name", MIXERS)
def test_the_backend_reaches_the_operator(name: str) -> None:
    operator, impossible = MIXERS[name]
    x = torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16)
    mixer = create_mixer(name, 16, backend=impossible)
    with pytest.raises(BackendError, match=f"{operator}: backend '{impossible}' cannot be used: "):
        mixer(x)
    state = mixer.init_state(2)
    with torch.no_grad(), pytest.raises(BackendError, match=f"'{impossible}' cannot be used"):
        mixer.step(x[:, 0], state)


@pytest.mark.parametrize("name", MIXERS)
def test_named_backends_agree(name: str) -> None:
    x = torch.linspace(-1, 1, 2 * 9 * 16).view(2, 9, 16).sin()
    outputs = {}
    for backend in ("auto", "cpu", "reference"):
        torch.manual_seed(0)
        kwargs = {"backend": backend}
        mixer = create_mixer(name, 16, **json.loads(json.dumps(kwargs)))
        assert mixer.backend == backend
        with torch.no_grad():
            outputs[backend] = mixer(x)[0]
            state = mixer.init_state(2)
            for t in range(3):
                y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, outputs[backend][:, 2], rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs["auto"], outputs["cpu"])
    torch.testing.assert_close(outputs["cpu"], outputs["reference"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_the_reference_runs_no_kernel_of_the_operator(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*args: object) -> None:
        raise AssertionError("a kernel was called")

    torch.manual_seed(0)
    mixers = [create_mixer(name, 16, backend=backend) for backend in ("reference", "cpu")]
    used = ("decay_weights", "selective_scan_forward", "delta_rule_forward", "dplr_forward")
    monkeypatch.setattr(backends, "_NATIVE", Blocked(backends.native(), used, kernel))
    x = torch.ones(1, 9, 16)
    with torch.no_grad():
        mixers[0](x)
        with pytest.raises(AssertionError, match="a kernel was called"):
            mixers[1](x)


class Blocked:
    """The compiled kernels, but for some that are replaced."""

    def __init__(self, module: object, names: tuple[str, ...], kernel: object) -> None:
        self._module, self._replaced = module, dict.fromkeys(names, kernel)

    def __getattr__(self, name: str) -> object:
        return self._replaced.get(name) or getattr(self._module, name)


@pytest.mark.parametrize("name", MIXERS)
def test_unknown_backends_are_refused_when_the_mixer_is_made(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no backend named 'trition'; did you mean 'triton'\?"):
        create_mixer(name, 16, backend="trition")


def test_the_convolution_runs_where_the_main_operator_has_a_backend_of_its_own() -> None:
    """Triton and mamba-ssm have no convolution; the others are the same for both operators."""
    for backend in ("auto", "reference", "cpu", "cuda"):
        assert convolution_backend(check_backend(backend)) == backend
    for backend in ("triton", "mamba_ssm"):
        assert convolution_backend(check_backend(backend)) == "auto"
    with pytest.raises(
        BackendError, match="ssd: backend 'triton' cannot be used: it runs on CUDA tensors"
    ):
        create_mixer("mamba2", 16, backend="triton")(torch.ones(1, 3, 16))
