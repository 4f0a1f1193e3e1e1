"""S4: state-space layer with a diagonal-plus-low-rank state matrix started from HiPPO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_even
from longseq.core.errors import ConfigError
from longseq.core.mixers._ssm_layer import Activation, Output, SSMLayer
from longseq.core.mixers.base import register_mixer
from longseq.core.mixers.s4d import SSMCore, SSMParameters
from longseq.core.ops.lti import lti_scan
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.s4_kernel import (
    LowRankSystem,
    as_complex,
    low_rank_kernel,
    low_rank_matrices,
    low_rank_step,
    truncated_output,
)
from longseq.core.ops.ssm_init import Measure, low_rank_form


class LowRankParameters(SSMParameters):
    """The parameters of S4: those of S4D and the low-rank factor P, real (R, S, N, 2).

    ``C`` is the output matrix itself. Published checkpoints hold C (1 - Āᴸ) for the length L in
    their buffer ``l_kernel``; loading such a state dict turns it back.

    Args:
        channels: H.
        copies: S, a divisor of H.
        measure: HiPPO matrix to start from.
        d_state: real state dimensions, 2N.
        rank: R, or None for the least that the measure needs.
        dt_min: shortest time step.
        dt_max: longest time step.
    """

    def __init__(
        self,
        channels: int,
        copies: int,
        measure: Measure,
        d_state: int,
        rank: int | None,
        dt_min: float,
        dt_max: float,
    ) -> None:
        form = low_rank_form(measure, d_state)
        super().__init__(channels, copies, form.eigenvalues, form.b, dt_min, dt_max)
        needed = len(form.p)
        rank = needed if rank is None else rank
        if rank < needed:
            raise ConfigError(f"rank must be at least {needed} for init {measure!r}, got {rank!r}")
        p = torch.nn.functional.pad(
            torch.view_as_real(form.p.to(torch.complex64)), (0, 0, 0, 0, 0, rank - needed)
        )
        self.P = nn.Parameter(p.unsqueeze(1).repeat(1, copies, 1, 1))

    def low_rank(self) -> LowRankSystem:
        """Returns the continuous systems of the H channels, in float64."""
        eigenvalues, b, c, dt = self()
        return LowRankSystem(eigenvalues, self.spread(as_complex(self.P)), b, c, dt)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        length = int(state_dict.pop(f"{prefix}l_kernel", 0))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if length > 0:
            with torch.no_grad():
                c = truncated_output(self.low_rank(), length, invert=True)
                self.C.copy_(torch.view_as_real(c).unsqueeze(0))


@register_mixer("s4")
class S4(SSMLayer):
    """Structured state spaces (S4, arXiv 2111.00396; LegT and FouT: arXiv 2206.12037).

    In each channel x' = A x + B u, y = C x with A = Λ - P P* (one of each conjugate pair kept), by
    the trapezium rule

        (2/Δ - A) x_t = (2/Δ + A) x_{t-1} + 2 B u_t,    y_t = 2 Re(C · x_t) + D u_t,

    then activation, dropout and the output map. A step costs O(N): Woodbury inverts the left-hand
    side.

    Args:
        d_model: width D.
        d_state: real state dimensions per channel, even: N = d_state / 2 conjugate pairs.
        init: "legs" remembers the whole past, "legt" and "fout" a window.
        rank: of the low-rank term; the least that ``init`` needs (2 for "legt", else 1) if None.
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
        "layer.kernel.P",
        "layer.kernel.A_real",
        "layer.kernel.A_imag",
        "layer.kernel.inv_dt",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        init: Measure = "legs",
        rank: int | None = None,
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
        check_choice("init", init, Measure)
        copies = d_model if n_ssm is None else n_ssm
        self.layer = SSMCore(
            LowRankParameters(d_model, copies, init, d_state, rank, dt_min, dt_max), d_model
        )

    def _system(self) -> LowRankSystem:
        return self.layer.kernel.low_rank()

    def _scan(
        self, u: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with autocast_off(u):
            a, b, c = low_rank_matrices(self._system())
        real = None if state is None else torch.cat([state.real, state.imag], dim=-1)
        y, last = lti_scan(u, a, b, c, real, resets, self.chunk_size)
        return y, torch.complex(*(part.contiguous() for part in last.chunk(2, dim=-1)))

    def _advance(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        system = self._system()
        after = low_rank_step(system, state.to(system.b.dtype), u.to(system.dt.dtype))
        return 2 * (system.c * after).sum(-1).real.to(u.dtype), after

    def _skip(self) -> Tensor:
        return self.layer.D[0]

    def convolution_kernel(self, length: int) -> Tensor:
        """Returns the kernel (D, L) of the state-space model's convolution, without the skip
        connection.

        Args:
            length: L.
        """
        return low_rank_kernel(self._system(), length)
