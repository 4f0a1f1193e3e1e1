"""S5: one multi-input, multi-output diagonal state-space model for all channels."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_divisible, check_even, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.lti import lti_scan
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.s4_kernel import Discretisation, as_complex, discretise, wide
from longseq.core.ops.ssm_init import log_uniform, normal_part, perturb_then_diagonalise

Init = Literal["legs", "ptd"]
CInit = Literal["trunc_standard_normal", "lecun_normal", "complex_normal"]
Activation = Literal["full_glu", "half_glu1", "half_glu2", "gelu", "none"]
_CLIPPED = -1e-4


@register_mixer("s5")
class S5(Mixer):
    """Simplified state spaces (S5, arXiv 2208.04933; resets: arXiv 2303.03982; PTD: arXiv
    2310.01698).

    One state x ∈ ℂᴾ for all channels, a time step for each of its dimensions (zero-order hold):

        x_t = e^{ΛΔ} x_{t-1} + (e^{ΛΔ} - 1)/Λ · B u_t,    y_t = 2 Re(C x_t) + D u_t,

    then, with h = GELU(y): "full_glu" (W₁h) σ(W₂h), "half_glu1" h σ(W₂h), "half_glu2" y σ(W₂h), or
    "gelu" h. The state is "ssm": complex (B, P).

    Args:
        d_model: width D.
        d_state: real state dimensions, even: P = d_state / 2 conjugate pairs.
        blocks: number of HiPPO blocks along the diagonal at the start; divides d_state into even
            parts.
        init: "legs" is the normal part of HiPPO-LegS, "ptd" LegS after a perturbation.
        c_init: distribution of C; all but "complex_normal" are turned by the eigenvectors of
            ``init``.
        disc: "zoh" or "bilinear".
        clip_eigs: whether to hold Re Λ at or below -1e-4, for unbounded sequences.
        dt_min: shortest time step at the start.
        dt_max: longest time step at the start.
        step_rescale: factor of all time steps, for data of another sampling rate than that of
            training.
        activation: see above; "none" leaves y.
        dropout: probability, after the GELU and after the gate.
        chunk_size: longest chunk of the scan; a matter of speed.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    ssm_parameters = ("Lambda_re", "Lambda_im", "B", "log_step")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        blocks: int = 1,
        init: Init = "legs",
        c_init: CInit = "trunc_standard_normal",
        disc: Discretisation = "zoh",
        clip_eigs: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        step_rescale: float = 1.0,
        activation: Activation = "half_glu1",
        dropout: float = 0.0,
        chunk_size: int = 32,
    ) -> None:
        super().__init__(d_model)
        self.n_complex = check_even("d_state", d_state)
        check_choice("init", init, Init)
        check_choice("c_init", c_init, CInit)
        check_choice("disc", disc, Discretisation)
        check_choice("activation", activation, Activation)
        if not step_rescale > 0:
            raise ConfigError(f"step_rescale must be above 0, got {step_rescale!r}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.disc: Discretisation = disc
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.clip_eigs, self.step_rescale, self.activation = clip_eigs, step_rescale, activation
        block = check_divisible("d_state", d_state, "blocks", check_positive("blocks", blocks))
        check_even("d_state / blocks", block)
        form = normal_part(block) if init == "legs" else perturb_then_diagonalise(block)
        eigenvalues = form.eigenvalues.repeat(blocks)
        v, v_inverse = (
            torch.block_diag(*[form.v] * blocks),
            torch.block_diag(*[form.v_inverse] * blocks),
        )
        self.Lambda_re = nn.Parameter(eigenvalues.real.float())
        self.Lambda_im = nn.Parameter(eigenvalues.imag.float())
        b = _lecun((d_state, d_model), d_state)
        self.B = nn.Parameter(_as_real(v_inverse @ b.to(v.dtype)))
        self.C = nn.Parameter(_initial_c(c_init, d_model, v))
        self.D = nn.Parameter(torch.randn(d_model))
        self.log_step = nn.Parameter(log_uniform((self.n_complex, 1), dt_min, dt_max))
        if activation == "full_glu":
            self.out1 = nn.Linear(d_model, d_model)
        if activation in ("full_glu", "half_glu1", "half_glu2"):
            self.out2 = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def system(self) -> tuple[Tensor, Tensor]:
        """Returns the discrete transition (P) and input matrix (P, D), complex, in float64."""
        real = wide(self.Lambda_re)
        eigenvalues = torch.complex(
            real.clamp(max=_CLIPPED) if self.clip_eigs else real, wide(self.Lambda_im)
        )
        a, factor = discretise(
            eigenvalues, self.step_rescale * wide(self.log_step)[:, 0].exp(), self.disc
        )
        return a, factor.unsqueeze(1) * as_complex(self.B)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        u = x.to(recurrent_dtype(x.dtype))
        a, b = self.system()
        with autocast_off(u):
            before = None if state is None else state["ssm"]
            states, last = self._states(a, _enter(b, u), before, segment_resets(segment_ids))
            y = self._read(states, u)
        return self._activate(y.to(x.dtype)), {"ssm": last}

    def _states(
        self, a: Tensor, entered: Tensor, before: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns all states (B, L, P) and the last one, for inputs B u (B, L, P)."""
        # Not linear_scan: it would round the decay to float32, an error that grows with the
        # memory's length.
        one = torch.ones_like(a).unsqueeze(1)
        before = None if before is None else before.unsqueeze(-1)
        states, last = lti_scan(entered, a.unsqueeze(1), one, one, before, resets, self.chunk_size)
        return states, last.squeeze(-1)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        u = x_t.to(recurrent_dtype(x_t.dtype))
        a, b = self.system()
        with autocast_off(u):
            last = a.to(state["ssm"].dtype) * state["ssm"] + _enter(b, u)
            y = self._read(last, u)
        return self._activate(y.to(x_t.dtype)), {"ssm": last}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        kind = recurrent_dtype(dtype).to_complex()
        return {"ssm": torch.zeros(batch, self.n_complex, dtype=kind, device=device)}

    def _read(self, states: Tensor, u: Tensor) -> Tensor:
        """Returns 2 Re(C x) + D u: one real product."""
        c = self.C.to(u.dtype)
        both = torch.stack([2 * c[..., 0], -2 * c[..., 1]], dim=2).flatten(1)
        # Real and imaginary parts as they lie: nothing is copied.
        pairs = torch.view_as_real(states).flatten(-2)
        return F.linear(pairs, both) + u * self.D.to(u.dtype)

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation == "none":
            return y
        h: Tensor = self.dropout(F.gelu(y, approximate="tanh"))
        if self.activation == "gelu":
            return h
        left = {"full_glu": lambda: self.out1(h), "half_glu1": lambda: h, "half_glu2": lambda: y}[
            self.activation
        ]()
        gated: Tensor = self.dropout(left * torch.sigmoid(self.out2(h)))
        return gated


def _enter(b: Tensor, u: Tensor) -> Tensor:
    """Returns B u, complex (..., P), for real u (..., D): one real product."""
    both = torch.view_as_real(b).transpose(1, 2).flatten(0, 1).to(u.dtype)
    return torch.view_as_complex(F.linear(u, both).unflatten(-1, (-1, 2)))


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.to(torch.complex64).resolve_conj()).clone()


def _lecun(shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Returns draws of variance 1 / fan_in from a normal distribution cut at two deviations,
    float64."""
    draw = nn.init.trunc_normal_(torch.empty(shape, dtype=torch.float64), a=-2.0, b=2.0)
    return draw / (0.87962566103423978 * math.sqrt(fan_in))  # the deviation that the cut leaves


def _initial_c(kind: str, d_model: int, v: Tensor) -> Tensor:
    """Returns C (D, P, 2) as published, for eigenvectors v (d_state, P)."""
    n = v.shape[0]
    if kind == "complex_normal":
        return torch.randn(d_model, v.shape[1], 2) * math.sqrt(0.5)
    # The published draws are made a row at a time, or for all rows as one convolution kernel of
    # width D.
    c = _lecun((d_model, n, 2), n if kind == "trunc_standard_normal" else d_model * n)
    return _as_real(torch.view_as_complex(c) @ v)
