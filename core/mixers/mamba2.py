"""Mamba-2: a gated block around state-space duality, one scalar decay per head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers._submodules import conv_weights
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend, convolution_backend
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from longseq.core.ops.linear_maps import mapped
from longseq.core.ops.ssd import ssd
from longseq.core.ops.state_update import state_update


@register_mixer("mamba2")
class Mamba2(Mixer):
    """Mamba-2 layer (arXiv 2405.21060, section 7 and figure 6).

        z, u, dt = W_in x;   x, B, C = SiLU(conv(u))
        h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_tᵀ,   Δ_t = softplus(dt_t + b)
        (``longseq.core.ops.ssd``) out = W_out RMSNorm((h_t C_t + D x_t) · SiLU(z))

    Parameters are named and shaped as in the published layer. Head and state dimensions of any size
    will do.

    Args:
        d_model: width D.
        d_state: size N of the state per channel.
        d_conv: width of the causal convolution.
        expand: the block's inner width is ``expand · d_model``.
        headdim: channels P of a head; None for 64, or the largest divisor of the inner width below
            that.
        d_ssm: inner channels that pass through the state, None for all; the others become a gated
            MLP.
        ngroups: groups of heads that share B and C.
        A_init_range: range from which -A is drawn.
        D_has_hdim: whether the skip D is per channel instead of per head.
        rmsnorm: whether the gated output is normalised; without it the gate is applied alone.
        norm_before_gate: whether the gate comes after the normalisation.
        dt_min: smallest initial step size.
        dt_max: largest initial step size.
        dt_init_floor: bound below the initial step size.
        dt_limit: bounds of the step size at run time.
        bias: whether the projections have a bias.
        conv_bias: whether the convolution has one.
        d_inner: the block's inner width in place of ``expand · d_model``.
        norm_eps: added to the mean square in the norm.
        multipliers: of z, x, B, C and dt, constant factors behind the input projection (Falcon-H1,
            arXiv 2507.22448, section 3.2); None for none.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator, and of the convolution where it has that one; see
            ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``headdim`` or ``ngroups`` does not divide, or a value is out of range.
    """

    ssm_parameters = ("A_log", "dt_bias", "D")

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int | None = None,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1.0, 16.0),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        d_inner: int | None = None,
        norm_eps: float = 1e-5,
        multipliers: Sequence[float] | None = None,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_state, self.d_conv = (
            check_positive("d_state", d_state),
            check_positive("d_conv", d_conv),
        )
        self.d_inner = check_positive("expand", expand) * d_model
        if d_inner is not None:
            self.d_inner = check_positive("d_inner", d_inner)
        self.d_ssm = self.d_inner if d_ssm is None else check_positive("d_ssm", d_ssm)
        if self.d_ssm > self.d_inner:
            raise ConfigError(f"d_ssm ({d_ssm}) must be at most the inner width ({self.d_inner})")
        if headdim is None:
            headdim = max(p for p in range(1, 65) if self.d_ssm % p == 0)
        self.nheads = check_divisible(
            "d_ssm" if d_ssm else "d_inner" if d_inner else "expand · d_model",
            self.d_ssm,
            "headdim",
            headdim,
        )
        check_divisible("number of heads", self.nheads, "ngroups", ngroups)
        if not 0 < A_init_range[0] <= A_init_range[1]:
            raise ConfigError(f"A_init_range must be positive and rising, got {A_init_range!r}")
        if not 0 < dt_min <= dt_max:
            raise ConfigError(
                f"dt_min must be positive and at most dt_max, got {dt_min!r} and {dt_max!r}"
            )
        if not 0 <= dt_limit[0] < dt_limit[1]:
            raise ConfigError(f"dt_limit must be at least 0 and rising, got {dt_limit!r}")
        self.headdim, self.ngroups = headdim, ngroups
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.conv_dim = self.d_ssm + 2 * ngroups * d_state

        # Rows of in_proj: [MLP gate, MLP value, z, x, B, C, dt].
        self.in_proj = nn.Linear(
            d_model, 2 * self.d_inner + 2 * ngroups * d_state + self.nheads, bias=bias
        )
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, d_conv, groups=self.conv_dim, bias=conv_bias
        )
        dt = torch.exp(torch.rand(self.nheads) * math.log(dt_max / dt_min) + math.log(dt_min))
        dt = dt.clamp_min(dt_init_floor)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*A_init_range).log())
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads))
        self.norm = (
            GatedRMSNorm(self.d_ssm, ngroups, norm_before_gate, norm_eps) if rmsnorm else None
        )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        if multipliers is not None:
            if len(multipliers) != 5:
                raise ConfigError(f"multipliers are five, of z, x, B, C, dt; got {multipliers!r}")
            if self.d_ssm < self.d_inner:
                raise ConfigError("multipliers are defined without an MLP part (d_ssm) only")
            maps = ngroups * d_state
            widths = (self.d_ssm, self.d_ssm, maps, maps, self.nheads)
            rows = zip(multipliers, widths, strict=True)
            factors = torch.tensor([float(m) for m, width in rows for _ in range(width)])
        self.factors: Tensor | None
        self.register_buffer("factors", factors if multipliers else None, persistent=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns h (B, H, P, N), at least float32, and the convolution's inputs (B, d_conv - 1,
        W)."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.nheads, self.headdim, self.d_state)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.conv_dim, device=device, dtype=dtype),
            "ssm": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype)),
        }

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the MLP's gate and value, z, what is convolved, and dt."""
        d_mlp = self.d_inner - self.d_ssm
        projected = mapped(self.in_proj, x)
        if self.factors is not None:
            projected = projected * self.factors.to(projected.dtype)
        sizes = [d_mlp, d_mlp, self.d_ssm, self.conv_dim, self.nheads]
        return projected.split(sizes, dim=-1)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        mlp_gate, mlp_value, z, mixed, dt = self._project(x)
        mixed, conv = causal_conv1d(
            mixed,
            *conv_weights(self.conv1d, "conv1d"),
            None if state is None else state["conv"],
            resets,
            activation="silu",
            backend=convolution_backend(self.backend),
        )
        maps = self.ngroups * self.d_state
        u, maps_in, maps_out = mixed.split([self.d_ssm, maps, maps], dim=-1)
        # A decay near 1 needs more digits than half precision has.
        rates = -torch.exp(self.A_log.to(recurrent_dtype(self.A_log.dtype)))
        y, ssm = ssd(
            u.unflatten(-1, (self.nheads, self.headdim)),
            dt,
            rates,
            maps_in.unflatten(-1, (self.ngroups, self.d_state)),
            maps_out.unflatten(-1, (self.ngroups, self.d_state)),
            chunk_size=self.chunk_size,
            D=self.D if self.D.shape[0] == self.nheads else self.D.view(self.nheads, self.headdim),
            z=z.unflatten(-1, (self.nheads, self.headdim)) if self.norm is None else None,
            dt_bias=self.dt_bias,
            initial_states=None if state is None else state["ssm"],
            resets=resets,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            backend=self.backend,
        )
        y = y.flatten(2)
        return self._finish(y, z, mlp_gate, mlp_value), {"conv": conv, "ssm": ssm}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``; without gradients the kernels are called directly."""
        conv = state["conv"]
        maps = self.ngroups * self.d_state
        mlp_gate, mlp_value, z, mixed, dt = self._project(x_t)
        taps, bias = conv_weights(self.conv1d, "conv1d")
        mixed, conv = causal_conv1d_step(
            mixed, taps, bias, conv, "silu", convolution_backend(self.backend)
        )
        u, maps_in, maps_out = mixed.split([self.d_ssm, maps, maps], dim=-1)
        if self.ngroups > 1:
            maps_in, maps_out = (
                m.unflatten(-1, (self.ngroups, self.d_state)) for m in (maps_in, maps_out)
            )
        y, ssm = state_update(
            state["ssm"],
            u,
            dt,
            self.A_log,
            maps_in,
            maps_out,
            self.D,
            z if self.norm is None else None,
            self.dt_bias,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            log_decay=True,
            backend=self.backend,
        )
        return self._finish(y, z, mlp_gate, mlp_value), {"conv": conv, "ssm": ssm}

    def _finish(self, y: Tensor, z: Tensor, mlp_gate: Tensor, mlp_value: Tensor) -> Tensor:
        """Normalises and gates, appends the channels that pass by the state, and projects."""
        if self.norm is not None:
            y = self.norm(y, z)
        if self.d_ssm < self.d_inner:
            y = torch.cat([silu(mlp_gate) * mlp_value, y], dim=-1)
        return mapped(self.out_proj, y)
