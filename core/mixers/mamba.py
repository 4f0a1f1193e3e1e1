r"""Mamba (Gu & Dao 2023, arXiv 2312.00752): a gated selective state-space layer.

x, z    = split(W_in u)
x       = silu(causal_conv1d(x))
Δ, B, C = split(W_x x)
y       = selective_scan(x, W_Δ Δ, A, B, C, D, z),   A = -exp(A_log)
out     = W_out y
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._submodules import conv_weights, holding
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend, convolution_backend
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.linear_maps import mapped, product_and_bias
from longseq.core.ops.mamba_step import MambaLayer, mamba_step
from longseq.core.ops.precision import bounded
from longseq.core.ops.selective_scan import selective_scan


@register_mixer("mamba")
class Mamba(Mixer):
    """The Mamba layer, with the parameter names and shapes of the published checkpoints.

    Args:
        d_model: width D.
        d_state: states per channel N.
        d_conv: taps of the short convolution.
        expand: inner width as a multiple of D.
        dt_rank: rank of the step-size projection; "auto" is ⌈D/16⌉.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init_floor: step sizes are clamped to at least this at initialisation.
        bias: whether the input and output projections have biases.
        conv_bias: whether the convolution has one.
        bcdt_norm: root-mean-square norm of B, C and the low-rank step sizes: "rms" with weights
            (Jamba, arXiv 2403.19887, section 6.4), "weightless" (FalconMamba, 2410.05355), or None.
        bcdt_eps: added to its mean squares.
        backend: of the scan, and of the convolution where it has that one; see
            ``longseq.core.ops.backends``.

    Raises:
        ConfigError: for sizes that are not positive, or an unknown backend.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_proj.bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        bcdt_norm: Literal["rms", "weightless"] | None = None,
        bcdt_eps: float = 1e-6,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_state = check_positive("d_state", d_state)
        self.d_conv = check_positive("d_conv", d_conv)
        self.d_inner = check_positive("expand", expand) * d_model
        self.dt_rank = (
            math.ceil(d_model / 16) if dt_rank == "auto" else check_positive("dt_rank", dt_rank)
        )
        if not 0 < dt_min <= dt_max:
            raise ConfigError(f"dt_min ({dt_min}) must be positive and at most dt_max ({dt_max})")
        self.backend = check_backend(backend)

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(
            torch.arange(1, d_state + 1).float().log().repeat(self.d_inner, 1)
        )
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        if bcdt_norm is not None:
            check_choice("bcdt_norm", bcdt_norm, Literal["rms", "weightless"])
            weighted = bcdt_norm == "rms"
            self.dt_layernorm = nn.RMSNorm(self.dt_rank, bcdt_eps, weighted)
            self.b_layernorm = nn.RMSNorm(d_state, bcdt_eps, weighted)
            self.c_layernorm = nn.RMSNorm(d_state, bcdt_eps, weighted)
        self.bcdt_norm = bcdt_norm
        self._init_step_sizes(dt_min, dt_max, dt_init_floor)

    def _init_step_sizes(self, dt_min: float, dt_max: float, floor: float) -> None:
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = math.log(dt_min), math.log(dt_max)
        dt = torch.exp(torch.rand(self.d_inner) * (high - low) + low).clamp(min=floor)
        with torch.no_grad():  # the inverse of softplus, so that softplus(bias) = dt
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        u, z = mapped(self.in_proj, x).split(self.d_inner, dim=-1)
        u, conv = causal_conv1d(
            u,
            *conv_weights(self.conv1d, "conv1d"),
            initial_state=None if state is None else state["conv"],
            resets=resets,
            activation="silu",
            backend=convolution_backend(self.backend),
        )
        dt, B, C = mapped(self.x_proj, u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        if self.bcdt_norm is not None:
            dt, B, C = bounded(dt), bounded(B), bounded(C)
            dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
        # The bias is added inside the scan, in float32, whatever the activations are.
        delta, bias = product_and_bias(self.dt_proj, dt)
        y, ssm = selective_scan(
            u,
            delta,
            -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log),
            B,
            C,
            self.D,
            z,
            bias,
            delta_softplus=True,
            initial_state=None if state is None else state["ssm"],
            resets=resets,
            backend=self.backend,
        )
        return mapped(self.out_proj, y), {"conv": conv, "ssm": ssm}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``; without gradients the kernels are called directly."""
        if self.bcdt_norm is not None:
            return super().step(x_t, state)
        conv1d = holding(self.conv1d, nn.Conv1d, "conv1d")
        layer = MambaLayer(
            self.in_proj,
            conv1d.weight,
            conv1d.bias,
            self.x_proj,
            self.dt_proj,
            self.A_log,
            self.D,
            self.out_proj,
        )
        y, conv, ssm = mamba_step(x_t, state["conv"], state["ssm"], layer, backend=self.backend)
        return y, {"conv": conv, "ssm": ssm}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """See ``Mixer.init_state``: "conv" (B, d_conv-1, d_inner), "ssm" (B, d_inner, d_state)."""
        device, dtype = self._where(device, dtype)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            "ssm": torch.zeros(
                batch, self.d_inner, self.d_state, device=device, dtype=recurrent_dtype(dtype)
            ),
        }
