"""DSS: diagonal state spaces, whose state matrix and time steps are shared as published."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._ssm_layer import Activation, DiagonalLayer, Output
from longseq.core.mixers.base import register_mixer
from longseq.core.ops.s4_kernel import as_complex, wide
from longseq.core.ops.ssm_init import log_uniform, low_rank_form

Version = Literal["exp", "softmax"]
_EPSILON = 1e-7


class DSSParameters(nn.Module):
    """The continuous system of DSS as published: log_dt, W, and Λ in one of two forms.

    Args:
        channels: H.
        n: complex state dimensions N.
        version: "exp" keeps Λ as Lambda_log_neg_re and Lambda_im (N), "softmax" as Lambda (N, 2).
        separate_dt: whether the real and the imaginary part of ΛΔ have time steps of their own.
        dt_min: shortest time step.
        dt_max: longest time step.
    """

    def __init__(
        self,
        channels: int,
        n: int,
        version: Version,
        separate_dt: bool,
        dt_min: float,
        dt_max: float,
    ) -> None:
        super().__init__()
        log_dt = log_uniform((channels,), dt_min, dt_max)
        self.log_dt = nn.Parameter(log_dt.unsqueeze(1).repeat(1, 2) if separate_dt else log_dt)
        eigenvalues = low_rank_form("legs", 2 * n).eigenvalues.conj().to(torch.complex64)
        if version == "exp":
            self.Lambda_log_neg_re = nn.Parameter((-eigenvalues.real).log())
            self.Lambda_im = nn.Parameter(eigenvalues.imag.clone())
        else:
            self.Lambda = nn.Parameter(torch.view_as_real(eigenvalues.resolve_conj()).clone())
        self.W = nn.Parameter(torch.randn(1, channels, n, 2))

    def eigenvalues(self) -> Tensor:
        """Returns Λ (N), complex, in float64."""
        if hasattr(self, "Lambda"):
            return as_complex(self.Lambda)
        return torch.complex(-wide(self.Lambda_log_neg_re).exp(), wide(self.Lambda_im))


@register_mixer("dss")
class DSS(DiagonalLayer):
    """Diagonal state spaces (DSS, arXiv 2203.14343).

    In each channel, with Λ ∈ ℂᴺ shared by the channels and W ∈ ℂᴺ their own, y = D u + K * u with
    the kernel

        exp:      K_l = Re Σ_n W_n (e^{Λ_n Δ} - 1)/Λ_n · e^{Λ_n Δ l}
        softmax:  K_l = Re Σ_n W_n/Λ_n · e^{Λ_n Δ l} / Σ_{r < L} e^{Λ_n Δ r}

    then activation, dropout and the output map. The published softmax depends on the length of the
    input, so that a longer input changes earlier outputs; here L is the hyper-parameter ``l_max``,
    and the layer streams. Where Re Λ has become positive, "softmax" outputs grow without bound
    behind ``l_max``.

    Args:
        d_model: width D.
        d_state: complex state dimensions N (not conjugate pairs).
        version: "exp" (Re Λ < 0 by construction) or "softmax" (Λ unconstrained).
        l_max: L of "softmax"; needed there, and refused elsewhere.
        separate_dt: whether the real and the imaginary part of ΛΔ have time steps of their own, as
            published.
        dt_min: shortest time step at the start.
        dt_max: longest time step at the start.
        activation: "gelu", "relu", "silu" or "none".
        output: "glu", "linear" or "none".
        dropout: probability.
        chunk_size: longest chunk of the scan; a matter of speed.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = (
        "kernel.log_dt",
        "kernel.Lambda",
        "kernel.Lambda_log_neg_re",
        "kernel.Lambda_im",
        "kernel.W",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        version: Version = "exp",
        l_max: int | None = None,
        separate_dt: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        activation: Activation = "gelu",
        output: Output = "linear",
        dropout: float = 0.0,
        chunk_size: int = 64,
    ) -> None:
        super().__init__(
            d_model, check_positive("d_state", d_state), activation, output, dropout, chunk_size
        )
        check_choice("version", version, Version)
        if (l_max is None) == (version == "softmax"):
            raise ConfigError(
                f"l_max is the length of version 'softmax' alone, got {l_max!r} for {version!r}"
            )
        self.l_max = None if l_max is None else check_positive("l_max", l_max)
        self.D = nn.Parameter(torch.randn(1, d_model))
        self.kernel = DSSParameters(d_model, d_state, version, separate_dt, dt_min, dt_max)
        own = {f"kernel.{name}" for name, _ in self.kernel.named_parameters()}
        # How the eigenvalues are kept depends on the version.
        self.ssm_parameters = tuple(  # type: ignore[misc]
            name for name in type(self).ssm_parameters if name in own
        )

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues = self.kernel.eigenvalues()
        dt = wide(self.kernel.log_dt).exp()
        dt = dt if dt.ndim == 2 else dt.unsqueeze(1).expand(-1, 2)
        z = torch.complex(eigenvalues.real * dt[:, :1], eigenvalues.imag * dt[:, 1:])  # (H, N)
        w = as_complex(self.kernel.W)[0]
        if self.l_max is None:
            squared = eigenvalues.abs().square().clamp(min=_EPSILON)
            w = w * (torch.exp(z) - 1) * eigenvalues.conj() / squared
        else:
            # Σ_{r<L} e^{zr} = (e^{zL} - 1)/(e^z - 1). Where Re z > 0 the sum runs backwards from
            # its largest
            # term: then e^{-z(L-1)} stands in front.
            growing = eigenvalues.real > 0
            falling = torch.where(growing, -z, z)
            product = (torch.exp(falling * self.l_max) - 1) * eigenvalues
            w = w * (torch.exp(falling) - 1) * product.conj() / (product.abs().square() + _EPSILON)
            w = w * torch.exp(torch.where(growing, -z * (self.l_max - 1), torch.zeros_like(z)))
        return torch.exp(z), torch.ones_like(z), w

    def _skip(self) -> Tensor:
        return self.D[0]
