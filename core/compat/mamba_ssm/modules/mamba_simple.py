r"""The Mamba layer of mamba-ssm, with the two-way scans of Vision Mamba's fork.

x, z    = W_in u;  x = silu(conv(x));  Δ, B, C = W_x x
y       = selective_scan(x, W_Δ Δ + b, A, B, C, D, z),   A = -exp(A_log)
out     = W_out y

Gu & Dao 2023, arXiv 2312.00752; Zhu et al. 2024, arXiv 2401.09417.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.compat._names import module_getattr
from longseq.core.compat._operators import causal_conv1d, selective_scan
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_update
from longseq.core.compat.mamba_ssm.modules._cache import keep_last, states_of
from longseq.core.compat.mamba_ssm.modules._checks import check_input, check_sizes, explained
from longseq.core.compat.mamba_ssm.modules.block import Block
from longseq.core.compat.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from longseq.core.errors import ArgumentError, ConfigError

__all__ = ["Block", "Mamba"]
__getattr__ = module_getattr(__name__)

Direction = Literal["none", "v1", "v2"]


def inverse_softplus(dt: Tensor) -> Tensor:
    """Returns the number whose softplus is dt."""
    return dt + torch.log(-torch.expm1(-dt))


def step_sizes(count: int, low: float, high: float, floor: float, **where: Any) -> Tensor:
    """Returns log-uniform random step sizes (count,) between low and high, at least ``floor``.

    Raises:
        ConfigError: for bounds that are not positive.
    """
    if not (low > 0 and high > 0):
        raise ConfigError(f"dt_min and dt_max must be positive, got {low!r} and {high!r}")
    span = math.log(high) - math.log(low)
    return torch.exp(torch.rand(count, **where) * span + math.log(low)).clamp(min=floor)


class Mamba(nn.Module):
    """The Mamba layer; parameters are named, shaped and initialised as the published ones.

    Args:
        d_model: width D.
        d_state: states per channel N.
        d_conv: taps of the convolution.
        expand: inner width as a multiple of D.
        dt_rank: rank of the step sizes; "auto" is ⌈D/16⌉.
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        dt_init: "random" or "constant" weights of the step sizes.
        dt_scale: scale of those weights.
        dt_init_floor: step sizes are at least this at initialisation.
        conv_bias: whether the convolution has a bias.
        bias: whether the projections have one.
        use_fast_path: accepted; there is one path.
        layer_idx: the layer's number, by which its states are kept while generating.
        device: of the parameters.
        dtype: of the parameters, but A_log and D, which are float32.
        bimamba_type: Vision Mamba's: "none"; "v1", a second scan backwards with decays of its own;
            "v2", with a convolution and projections of its own.
        if_divide_out: whether the sum of both directions of "v2" is halved.
        init_layer_scale: initial value of a factor of every output channel; None for none.
        bimamba: VideoMamba's name for "v2" (True) and "none".
        nslices: accepted as None: SegMamba's third direction, "v3", is not offered.

    Raises:
        ConfigError: for an unknown ``dt_init`` or ``bimamba_type``, or sizes below 1.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: Direction = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        bimamba: bool | None = None,
        nslices: int | None = None,
    ) -> None:
        super().__init__()
        if nslices is not None or str(bimamba_type) == "v3":
            raise ConfigError(
                'Mamba: bimamba_type="v3" and nslices, SegMamba\'s third direction, are not offered'
            )
        if bimamba and bimamba_type in ("none", "v2"):  # VideoMamba's switch
            bimamba_type = "v2"
        if dt_init not in ("random", "constant"):
            raise ConfigError(f"dt_init must be 'random' or 'constant', got {dt_init!r}")
        if bimamba_type not in ("none", "v1", "v2"):
            raise ConfigError(f"bimamba_type must be 'none', 'v1' or 'v2', got {bimamba_type!r}")
        check_sizes("Mamba", d_model=d_model, d_state=d_state, d_conv=d_conv)
        check_sizes("Mamba", dt_rank=1 if dt_rank == "auto" else dt_rank)
        check_sizes("Mamba", **{"expand · d_model": int(expand * d_model)})
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.if_divide_out = bimamba_type, if_divide_out
        self.init_layer_scale, self.bimamba = init_layer_scale, bimamba_type == "v2"
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias, **where)
        self.conv1d = self._convolution(conv_bias, where)
        self.activation, self.act = "silu", nn.SiLU()
        maps = self.dt_rank + 2 * d_state
        self.x_proj = nn.Linear(self.d_inner, maps, bias=False, **where)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **where)
        scale = self.dt_rank**-0.5 * dt_scale
        if dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, scale)
        else:
            nn.init.uniform_(self.dt_proj.weight, -scale, scale)
        dt = step_sizes(self.d_inner, dt_min, dt_max, dt_init_floor, **where)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(dt))
        # Marks that the published training code and initialisation look for.
        self.dt_proj.bias._no_reinit = True  # type: ignore[attr-defined]
        self.A_log, self.D = self._decays(device), self._skip(device)
        if bimamba_type != "none":
            self.A_b_log = self._decays(device)
        if bimamba_type == "v2":
            self.conv1d_b = self._convolution(conv_bias, where)
            self.x_proj_b = nn.Linear(self.d_inner, maps, bias=False, **where)
            self.dt_proj_b = nn.Linear(self.dt_rank, self.d_inner, **where)
            self.D_b = self._skip(device)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias, **where)

    def _convolution(self, bias: bool, where: dict[str, Any]) -> nn.Conv1d:
        width, taps = self.d_inner, self.d_conv
        return nn.Conv1d(width, width, taps, padding=taps - 1, groups=width, bias=bias, **where)

    def _decays(self, device: torch.device | str | None) -> nn.Parameter:
        rates = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        log = nn.Parameter(rates.log().repeat(self.d_inner, 1))
        log._no_weight_decay = True  # type: ignore[attr-defined]
        return log

    def _skip(self, device: torch.device | str | None) -> nn.Parameter:
        skip = nn.Parameter(torch.ones(self.d_inner, device=device))
        skip._no_weight_decay = True  # type: ignore[attr-defined]
        return skip

    def _parts(
        self, x: Tensor, conv: nn.Conv1d, x_proj: nn.Module, dt_proj: nn.Linear
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the convolved x, Δ without its bias, B and C, channels last."""
        x, _ = causal_conv1d(x, conv.weight.squeeze(1), conv.bias, activation="silu")
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = x_proj(x).split(sizes, dim=-1)
        return x, without_bias(dt_proj, dt), B, C

    @explained("in_proj")
    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """Mixes a sequence, or the next position of one.

        Args:
            hidden_states: (B, L, D).
            inference_params: None, or an ``InferenceParams`` in which the states are left, and from
                which the sequence goes on where its ``seqlen_offset`` is not 0 (L is 1 then).

        Returns:
            (B, L, D).

        Raises:
            ArgumentError: for an input or states that do not fit.
        """
        check_input("Mamba", hidden_states, self.d_model)
        held = None
        if inference_params is not None:
            if self.bimamba_type != "none":
                raise ArgumentError("Mamba: a layer that scans both ways cannot generate")
            held = states_of(self, inference_params, hidden_states.shape[0])
            if inference_params.seqlen_offset > 0:
                return self.step(hidden_states, *held)[0]
        inner, z = self.in_proj(hidden_states).split(self.d_inner, dim=-1)
        x, delta, B, C = self._parts(inner, self.conv1d, self.x_proj, self.dt_proj)
        A, bias = decay_of(self.A_log), self.dt_proj.bias
        y, last = selective_scan(x, delta, A, B, C, self.D, z, bias, delta_softplus=True)
        if held is not None:
            keep_last(held[0], inner)
            with torch.no_grad():
                held[1].copy_(last)
        if self.bimamba_type != "none":
            y = y + self._backwards(inner, (x, delta, B, C), z)
            y = y / 2 if self.bimamba_type == "v2" and self.if_divide_out else y
        out: Tensor = self.out_proj(y)
        return out if self.init_layer_scale is None else out * self.gamma

    def _backwards(
        self, inner: Tensor, parts: tuple[Tensor, Tensor, Tensor, Tensor], z: Tensor
    ) -> Tensor:
        """Returns what the scan from the end to the beginning gives."""
        if self.bimamba_type == "v1":
            turned = tuple(t.flip(1) for t in parts)
            skip, bias = self.D, self.dt_proj.bias
        else:
            turned = self._parts(inner.flip(1), self.conv1d_b, self.x_proj_b, self.dt_proj_b)
            skip, bias = self.D_b, self.dt_proj_b.bias
        x, delta, B, C = turned
        y, _ = selective_scan(
            x, delta, decay_of(self.A_b_log), B, C, skip, z.flip(1), bias, delta_softplus=True
        )
        return y.flip(1)

    @explained("in_proj")
    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mixes one position (B, 1, D) and updates the states in place; returns all three."""
        check_input("Mamba", hidden_states, self.d_model)
        if hidden_states.shape[1] != 1:
            raise ArgumentError(f"Mamba: step takes one position, got {tuple(hidden_states.shape)}")
        x, z = self.in_proj(hidden_states.squeeze(1)).split(self.d_inner, dim=-1)
        taps = self.conv1d.weight.squeeze(1)
        x = causal_conv1d_update(x, conv_state, taps, self.conv1d.bias, "silu")
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = without_bias(self.dt_proj, dt)
        bias = self.dt_proj.bias
        y = selective_state_update(
            ssm_state, x, delta, decay_of(self.A_log), B, C, self.D, z, bias, dt_softplus=True
        )
        out = self.out_proj(y).unsqueeze(1)
        out = out if self.init_layer_scale is None else out * self.gamma
        return out, conv_state, ssm_state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns zero states: of the convolution (B, inner, d_conv), of the scan (B, inner, N)."""
        del max_seqlen, kwargs
        taps = self.conv1d.weight
        conv = taps.new_zeros(batch_size, self.d_inner, self.d_conv, dtype=dtype or taps.dtype)
        weight = self.dt_proj.weight
        ssm = weight.new_zeros(batch_size, self.d_inner, self.d_state, dtype=dtype or weight.dtype)
        return conv, ssm

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> Any:
        return states_of(self, inference_params, batch_size, initialize_states)


def without_bias(module: nn.Linear, x: Tensor) -> Tensor:
    """Returns what a linear map gives before its bias, which the scan adds in float32; an adapter
    that wraps it is asked as a whole."""
    if type(module) is nn.Linear:
        return nn.functional.linear(x, module.weight)
    y: Tensor = module(x)
    return y - module.bias.to(y.dtype)


def decay_of(log: Tensor) -> Tensor:
    """Returns -exp(log) in float32 at least."""
    return -torch.exp(log if log.dtype == torch.float64 else log.float())
