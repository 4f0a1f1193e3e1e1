"""The Mamba-2 layer of mamba-ssm (Dao & Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)
from longseq.core.compat.causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from longseq.core.compat.mamba_ssm.modules._cache import keep_last, states_of
from longseq.core.compat.mamba_ssm.modules._checks import check_input, explained
from longseq.core.compat.mamba_ssm.modules._mamba2 import Mamba2Layer
from longseq.core.compat.mamba_ssm.ops.triton.layernorm_gated import RMSNorm
from longseq.core.compat.mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.state_update import state_update

__all__ = ["Mamba2"]
__getattr__ = module_getattr(__name__)


class Mamba2(Mamba2Layer):
    """The Mamba-2 layer; parameters are named, shaped and initialised as the published ones.

    Args:
        d_model: width D.
        d_state: states per channel N.
        d_conv: taps of the convolution.
        conv_init: its weights are drawn from ± this; torch's own if None.
        expand: inner width as a multiple of D.
        headdim: channels per head P.
        d_ssm: inner channels that pass the scan, all if None; the others are a gated MLP.
        ngroups: groups of heads that share B and C, and of the norm.
        A_init_range: range of the initial decay rates.
        D_has_hdim: whether the skip is one per channel, not one per head.
        rmsnorm: whether the gated output is normalised.
        norm_before_gate: whether the gate comes after the norm.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init_floor: step sizes are at least this at initialisation.
        dt_limit: bounds of the step size, while generating too.
        bias: whether the projections have a bias.
        conv_bias: whether the convolution has one.
        chunk_size: positions per chunk; changes speed only.
        use_mem_eff_path: accepted; there is one path.
        layer_idx: the layer's number, by which its states are kept while generating.
        process_group: None; a layer split over processes is not offered.
        sequence_parallel: accepted; it speaks of ``process_group``.
        device: of the parameters.
        dtype: of the parameters, but D, which is float32.

    Raises:
        ConfigError: for sizes that do not divide or are below 1, or a process group.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if process_group is not None:
            raise ConfigError("Mamba2: process_group, a layer split over processes, is not offered")
        super().__init__(
            d_model,
            d_state,
            d_conv,
            conv_init,
            expand,
            headdim,
            d_ssm,
            ngroups,
            dt_limit,
            chunk_size,
            layer_idx,
        )
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.process_group, self.sequence_parallel = process_group, sequence_parallel
        self.world_size, self.local_rank = 1, 0
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.activation, self.use_mem_eff_path = "silu", use_mem_eff_path
        self._project(bias, conv_bias, where)
        skips = self.d_ssm if D_has_hdim else self.nheads
        self._rates(A_init_range, (dt_min, dt_max, dt_init_floor), skips, where)
        if rmsnorm:
            size = self.d_ssm // ngroups
            self.norm = RMSNorm(self.d_ssm, 1e-5, size, norm_before_gate, **where)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias, **where)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        """Returns the MLP's gate and value, z, the convolution's input, and dt."""
        mlp = self.d_inner - self.d_ssm
        return projected.split([mlp, mlp, self.d_ssm, self.conv_dim, self.nheads], dim=-1)

    def _finish(self, y: Tensor, z: Tensor, gate: Tensor, value: Tensor) -> Tensor:
        y = self.norm(y, z) if self.rmsnorm else y
        if self.d_ssm < self.d_inner:
            y = torch.cat([F.silu(gate) * value, y], dim=-1)
        out: Tensor = self.out_proj(y)
        return out

    @explained("in_proj")
    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """Mixes sequences, or the next position of each.

        Args:
            u: (B, L, D); (B L, D) with ``seqlen``.
            seqlen: L, where batch and time are one dimension.
            seq_idx: integers (B, L), the sequence of each position; negative ones are padding.
            cu_seqlens: where the packed sequences of a batch of 1 begin, and the end of the last
                (S + 1,): the states of S rows are left in ``inference_params``.
            inference_params: None, or an ``InferenceParams`` in which the states are left, and from
                which the sequence goes on where its ``seqlen_offset`` is not 0 (L is 1 then).

        Returns:
            As u.

        Raises:
            ArgumentError: for an input, lengths or states that do not fit.
        """
        check_input("Mamba2", u, self.d_model, 3 if seqlen is None else 2)
        rows = u
        if seqlen is not None:
            if seqlen < 1 or u.shape[0] % seqlen:
                raise ArgumentError(
                    f"Mamba2: seqlen ({seqlen}) must divide the {u.shape[0]} positions of the input"
                )
            rows = u.unflatten(0, (u.shape[0] // seqlen, seqlen))
        held = None
        if inference_params is not None:
            count = rows.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            held = states_of(self, inference_params, count)
            if inference_params.seqlen_offset > 0:
                return self.step(u, *held)[0]
        gate, value, z, mixed, dt = self._split(self.in_proj(rows))
        if held is not None and cu_seqlens is None:
            keep_last(held[0], mixed)
        elif held is not None and cu_seqlens is not None:
            if rows.shape[0] != 1:
                raise ArgumentError("Mamba2: cu_seqlens needs a batch of 1")
            with torch.no_grad():
                taps = held[0].shape[-1]
                held[0].copy_(causal_conv1d_varlen_states(mixed[0], cu_seqlens, taps))
        convolved = causal_conv1d_fn(
            mixed.transpose(1, 2),
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            seq_idx,
            activation="silu",
        )
        assert isinstance(convolved, Tensor)
        maps = self.ngroups * self.d_state
        x, B, C = convolved.transpose(1, 2).split([self.d_ssm, maps, maps], dim=-1)
        heads, groups = (self.nheads, self.headdim), (self.ngroups, self.d_state)
        y, *states = mamba_chunk_scan_combined(
            x.unflatten(-1, heads),
            dt,
            self._decay(),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
            self.chunk_size,
            self._skip(),
            None if self.rmsnorm else z.unflatten(-1, heads),
            self.dt_bias,
            seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            return_final_states=True,
            return_varlen_states=held is not None and cu_seqlens is not None,
        )
        if held is not None:
            with torch.no_grad():
                held[1].copy_(states[-1])
        out = self._finish(y.flatten(2), z, gate, value)
        return out if seqlen is None else out.flatten(0, 1)

    @explained("in_proj")
    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mixes one position (B, 1, D) and updates the states in place; returns all three."""
        check_input("Mamba2", hidden_states, self.d_model)
        if hidden_states.shape[1] != 1:
            raise ArgumentError(
                f"Mamba2: step takes one position, got {tuple(hidden_states.shape)}"
            )
        gate, value, z, mixed, dt = self._split(self.in_proj(hidden_states.squeeze(1)))
        taps = self.conv1d.weight.squeeze(1)
        mixed = causal_conv1d_update(mixed, conv_state, taps, self.conv1d.bias, "silu")
        maps = self.ngroups * self.d_state
        x, B, C = mixed.split([self.d_ssm, maps, maps], dim=-1)
        if self.ngroups > 1:
            B, C = (m.unflatten(-1, (self.ngroups, self.d_state)) for m in (B, C))
        y, after = state_update(
            # A copy where there is a gradient: it needs what is overwritten below.
            ssm_state.to(compute_dtype(ssm_state), copy=torch.is_grad_enabled()),
            x,
            dt,
            self.A_log,
            B,
            C,
            self.D,
            None if self.rmsnorm else z,
            self.dt_bias,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            log_decay=True,
        )
        with torch.no_grad():
            ssm_state.copy_(after)
        return self._finish(y, z, gate, value).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns zero states: of the convolution (B, width, d_conv), channels dense in memory; of
        the scan (B, H, P, N)."""
        del max_seqlen, kwargs
        taps, weight = self.conv1d.weight, self.in_proj.weight
        conv = taps.new_zeros(batch_size, self.d_conv, self.conv_dim, dtype=dtype or taps.dtype)
        shape = (batch_size, self.nheads, self.headdim, self.d_state)
        return conv.transpose(1, 2), weight.new_zeros(shape, dtype=dtype or weight.dtype)

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> Any:
        return states_of(self, inference_params, batch_size, initialize_states)
