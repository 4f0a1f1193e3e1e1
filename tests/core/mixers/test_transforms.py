"""Mixers that attend, under torch's transforms: vmap, gradients per sample, forward mode, and
second derivatives where the plain equations are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from longseq.core.mixers import Mixer, create_mixer

ATTENDING: list[tuple[str, dict[str, Any]]] = [
    ("attention", {}),
    ("local_attention", {"window": 8}),
    ("forgetting_attention", {}),
    ("transnormer", {"block": 8}),
    ("memmamba", {"d_state": 4}),
    ("longvq", {}),
    ("mega", {}),
]


def layer(name: str, options: dict[str, Any]) -> tuple[Mixer, Tensor]:
    torch.manual_seed(0)
    return create_mixer(name, 16, **options).double(), torch.randn(3, 20, 16, dtype=torch.float64)


@pytest.mark.parametrize(("name", "options"), ATTENDING)
def test_vmap_and_gradients_per_sample(name: str, options: dict[str, Any]) -> None:
    mixer, x = layer(name, options)
    mapped = torch.func.vmap(lambda row: mixer(row)[0])(x[:, None])[:, 0]
    torch.testing.assert_close(mapped, mixer(x)[0])
    weights = {key: p.detach() for key, p in mixer.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        y, _ = torch.func.functional_call(mixer, weights, (row[None],))
        out: Tensor = y.square().sum()
        return out

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    mixer(x)[0].square().sum().backward()
    for key, p in mixer.named_parameters():
        wanted = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(each[key].sum(0), wanted, msg=key)


@pytest.mark.parametrize(("name", "options"), ATTENDING)
def test_forward_mode(name: str, options: dict[str, Any]) -> None:
    mixer, x = layer(name, options)
    tangent = torch.randn_like(x)
    there, back = (mixer(x + sign * 1e-6 * tangent)[0].detach() for sign in (1, -1))
    wanted = (there - back) / 2e-6
    _, found = torch.func.jvp(lambda x: mixer(x)[0], (x,), (tangent,))
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-5, atol=1e-6)
    with forward_ad.dual_level():
        y = mixer(forward_ad.make_dual(x, tangent))[0]
        dual = forward_ad.unpack_dual(y).tangent
    assert dual is not None
    torch.testing.assert_close(dual.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), ATTENDING)
def test_second_derivatives_by_the_plain_equations(name: str, options: dict[str, Any]) -> None:
    mixer, x = layer(name, options)
    x = x[:1, :12].requires_grad_()
    direction = torch.randn_like(x)

    def slope(x: Tensor) -> Tensor:
        y: Tensor = mixer(x)[0]
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]

    with sdpa_kernel(SDPBackend.MATH):
        found = torch.autograd.grad((slope(x) * direction).sum(), x)[0]
    there, back = (slope(x + sign * 1e-6 * direction).detach() for sign in (1, -1))
    torch.testing.assert_close(found, (there - back) / 2e-6, rtol=1e-4, atol=1e-5)
