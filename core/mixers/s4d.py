"""S4D: state-space layer with a diagonal state matrix."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_divisible, check_even
from longseq.core.mixers._ssm_layer import Activation, DiagonalLayer, Output
from longseq.core.mixers.base import register_mixer
from longseq.core.ops.s4_kernel import Discretisation, as_complex, discretise, wide
from longseq.core.ops.ssm_init import DiagonalInit, diagonal_system, log_uniform

_SLOWEST_DECAY = 1e-4


class SSMParameters(nn.Module):
    """The continuous system of S4 and S4D as published: C, B, A_real, A_imag and inv_dt.

    λ = -exp(A_real) - i A_imag, Δ = exp(inv_dt). S copies of (λ, B) are shared by H channels,
    channel h taking copy h mod S.

    Args:
        channels: H.
        copies: S, a divisor of H.
        eigenvalues: complex (N), of each copy.
        b: complex (N), of each copy.
        dt_min: shortest time step.
        dt_max: longest time step.
    """

    def __init__(
        self,
        channels: int,
        copies: int,
        eigenvalues: Tensor,
        b: Tensor,
        dt_min: float,
        dt_max: float,
    ) -> None:
        super().__init__()
        self.repeats = check_divisible("d_model", channels, "n_ssm", copies)
        n = len(eigenvalues)
        self.C = nn.Parameter(
            torch.view_as_real(torch.randn(1, channels, n, dtype=torch.complex64))
        )
        self.inv_dt = nn.Parameter(log_uniform((channels, 1), dt_min, dt_max))
        self.B = nn.Parameter(torch.view_as_real(b.to(torch.complex64)).repeat(1, copies, 1, 1))
        decay = (-eigenvalues.real).clamp(min=_SLOWEST_DECAY).log()
        self.A_real = nn.Parameter(decay.float().repeat(copies, 1))
        self.A_imag = nn.Parameter((-eigenvalues.imag).float().repeat(copies, 1))

    def spread(self, x: Tensor) -> Tensor:
        """Returns values (..., H, N) of the channels for values (..., S, N) of the copies."""
        return torch.cat([x] * self.repeats, dim=-2)

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns λ (H, N), B (H, N), C (H, N), complex, and Δ (H, 1), in float64."""
        eigenvalues = torch.complex(-wide(self.A_real).exp(), -wide(self.A_imag))
        b, c = as_complex(self.B)[0], as_complex(self.C)[0]
        return self.spread(eigenvalues), self.spread(b), c, wide(self.inv_dt).exp()


Kernel = TypeVar("Kernel", bound=SSMParameters)


class SSMCore(nn.Module, Generic[Kernel]):
    """Groups the skip connection D (1, H) and the parameters ``kernel`` as published checkpoints
    do."""

    def __init__(self, kernel: Kernel, channels: int) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.randn(1, channels))
        self.kernel = kernel


@register_mixer("s4d")
class S4D(DiagonalLayer):
    """S4 with a diagonal state matrix (arXiv 2206.11893; initialisations: arXiv 2206.12037).

    In each channel, with λ, B, C ∈ ℂᴺ and zero-order hold,

        x_t = e^{λΔ} x_{t-1} + (e^{λΔ} - 1)/λ · B u_t,    y_t = 2 Re(C · x_t) + D u_t,

    then activation, dropout and the output map.

    Args:
        d_model: width D.
        d_state: real state dimensions per channel, even: N = d_state / 2 conjugate pairs.
        init: "lin", "inv", "legs" or "ptd"; see ``longseq.core.ops.ssm_init.diagonal_system``.
        disc: "zoh" or "bilinear".
        n_ssm: number of different (A, B), a divisor of d_model; one per channel if None.
        dt_min: shortest time step at the start.
        dt_max: longest time step at the start.
        activation: "gelu", "relu", "silu" or "none".
        output: "glu", "linear" or "none".
        dropout: probability.
        chunk_size: longest chunk of the scan; a matter of speed.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    ssm_parameters = (
        "layer.kernel.B",
        "layer.kernel.A_real",
        "layer.kernel.A_imag",
        "layer.kernel.inv_dt",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: DiagonalInit = "lin",
        disc: Discretisation = "zoh",
        n_ssm: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        activation: Activation = "gelu",
        output: Output = "glu",
        dropout: float = 0.0,
        chunk_size: int = 64,
    ) -> None:
        super().__init__(
            d_model, check_even("d_state", d_state), activation, output, dropout, chunk_size
        )
        check_choice("disc", disc, Discretisation)
        self.disc: Discretisation = disc
        copies = d_model if n_ssm is None else n_ssm
        kernel = SSMParameters(d_model, copies, *diagonal_system(init, d_state), dt_min, dt_max)
        self.layer = SSMCore(kernel, d_model)

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues, b, c, dt = self.layer.kernel()
        a, factor = discretise(eigenvalues, dt, self.disc)
        return a, factor * b, 2 * c

    def _skip(self) -> Tensor:
        return self.layer.D[0]
