"""The Mamba-2 layer of mamba-ssm without generation, with initial states that can be learnt."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.modules._checks import check_input, explained
from longseq.core.compat.mamba_ssm.modules._mamba2 import Mamba2Layer
from longseq.core.compat.mamba_ssm.ops.triton.layernorm_gated import RMSNorm
from longseq.core.compat.mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

__all__ = ["Mamba2Simple"]
__getattr__ = module_getattr(__name__)


class Mamba2Simple(Mamba2Layer):
    """The Mamba-2 layer; parameters are named, shaped and initialised as the published ones.

    Args:
        d_model: width D.
        d_state: states per channel N.
        d_conv: taps of the convolution.
        conv_init: its weights are drawn from ± this; torch's own if None.
        expand: inner width as a multiple of D.
        headdim: channels per head P.
        ngroups: groups of heads that share B and C.
        A_init_range: range of the initial decay rates.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init_floor: step sizes are at least this at initialisation.
        dt_limit: bounds of the step size.
        learnable_init_states: whether the state before the first position is a parameter.
        activation: of the convolution.
        bias: whether the projections have a bias.
        conv_bias: whether the convolution has one.
        chunk_size: positions per chunk; changes speed only.
        use_mem_eff_path: whether the norm is over each of the groups (the published fused path) or
            over all channels (the other one).
        layer_idx: accepted.
        device: of the parameters.
        dtype: of the parameters, but D, which is float32.

    Raises:
        ConfigError: for sizes that do not divide.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            d_state,
            d_conv,
            conv_init,
            expand,
            headdim,
            None,
            ngroups,
            dt_limit,
            chunk_size,
            layer_idx,
        )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.learnable_init_states, self.activation = learnable_init_states, activation
        self.use_mem_eff_path = use_mem_eff_path
        self._project(bias, conv_bias, where)
        if learnable_init_states:
            self.init_states = nn.Parameter(torch.zeros(self.nheads, headdim, d_state, **where))
            self.init_states._no_weight_decay = True  # type: ignore[attr-defined]
        self._rates(A_init_range, (dt_min, dt_max, dt_init_floor), self.nheads, where)
        self.norm = RMSNorm(self.d_inner, 1e-5, norm_before_gate=False, **where)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias, **where)

    @explained("in_proj")
    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:
        """Mixes sequences.

        Args:
            u: (B, L, D).
            seq_idx: integers (B, L), the sequence of each position.

        Returns:
            (B, L, D).

        Raises:
            ArgumentError: for an input or sequences that do not fit.
        """
        check_input("Mamba2Simple", u, self.d_model)
        projected = self.in_proj(u)
        initial = None
        if self.learnable_init_states:
            initial = self.init_states.expand(u.shape[0], -1, -1, -1)
        y = mamba_split_conv1d_scan_combined(
            projected,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            self._decay(),
            self.D,
            self.chunk_size,
            initial,
            seq_idx,
            self.dt_limit,
            activation=self.activation,
            rmsnorm_weight=self.norm.weight,
            rmsnorm_eps=self.norm.eps,
            rmsnorm_group_size=None if self.use_mem_eff_path else self.d_inner,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=False,
        )
        assert isinstance(y, Tensor)
        out: Tensor = self.out_proj(y)
        return out
