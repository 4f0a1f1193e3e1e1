"""What the layers on the delta rule share: projections, short convolutions, unit keys and
decays."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, softplus

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._submodules import conv_weights, holding
from longseq.core.mixers.base import Mixer, State, recurrent_dtype
from longseq.core.ops.backends import Backend, check_backend, convolution_backend
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.linear_maps import mapped
from longseq.core.ops.precision import bounded

_EPS = 1e-6  # added to the square of a norm that is divided by


class DeltaMixer(Mixer):
    """Queries, keys and values of a layer on the delta rule, and its state.

    Parameters are named and shaped as in flash-linear-attention's layers.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        d_key: width of a head's keys.
        d_value: width of a head's values.
        writes: keys and values per position and head.
        conv_size: taps of the convolutions of queries, keys and values.
        conv_bias: whether the convolutions have a bias.
        allow_neg_eigval: whether β goes up to 2, and the transition's eigenvalues down to -1.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_key: int,
        d_value: int,
        writes: int,
        conv_size: int,
        conv_bias: bool,
        allow_neg_eigval: bool,
        chunk_size: int,
        backend: Backend,
    ) -> None:
        super().__init__(d_model)
        self.n_heads = check_positive("n_heads", n_heads)
        self.d_key = check_positive("key width of a head", d_key)
        self.d_value = check_positive("value width of a head", d_value)
        self.writes = writes
        self.conv_size = check_positive("conv_size", conv_size)
        self.allow_neg_eigval = allow_neg_eigval
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        keys, values = n_heads * d_key, n_heads * d_value
        self.widths = [keys, writes * keys, writes * values]
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(d_model, width, bias=False) for width in self.widths
        )
        self.b_proj = nn.Linear(d_model, writes * n_heads, bias=False)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            nn.Conv1d(width, width, conv_size, groups=width, bias=conv_bias)
            for width in self.widths
        )
        self.o_proj = nn.Linear(values, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the matrix state (B, H, K, V), at least float32, and the convolutions' last
        inputs."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.n_heads, self.d_key, self.d_value)
        return {
            "conv": torch.zeros(
                batch, self.conv_size - 1, sum(self.widths), device=device, dtype=dtype
            ),
            "kv": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype)),
        }

    def _project(
        self, x: Tensor, state: State | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns q (B, L, H, K), k and v (B, L · writes, H, …), β (B, L · writes, H) and the conv
        state.

        Queries and keys have norm 1.
        """
        names = ("q_conv1d", "k_conv1d", "v_conv1d")
        convolutions = [conv_weights(getattr(self, name), name) for name in names]
        biases = [bias for _, bias in convolutions if bias is not None]
        mixed, conv = causal_conv1d(
            torch.cat([mapped(layer, x) for layer in (self.q_proj, self.k_proj, self.v_proj)], -1),
            torch.cat([weight for weight, _ in convolutions]),
            torch.cat(biases) if biases else None,
            None if state is None else state["conv"],
            resets,
            activation="silu",
            backend=convolution_backend(self.backend),
        )
        q, k, v = mixed.split(self.widths, -1)
        q = q.unflatten(-1, (self.n_heads, -1))
        k, v = (t.unflatten(-1, (self.writes, self.n_heads, -1)).flatten(1, 2) for t in (k, v))
        beta = self.b_proj(x)
        beta = (
            beta.to(recurrent_dtype(beta.dtype))
            .sigmoid()
            .unflatten(-1, (self.writes, -1))
            .flatten(1, 2)
        )
        return unit(q), unit(k), v, 2 * beta if self.allow_neg_eigval else beta, conv


def unit(x: Tensor) -> Tensor:
    """Returns x over its norm along the last dimension, computed in float32 at least."""
    wide = bounded(x.to(recurrent_dtype(x.dtype)))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + _EPS)).to(x.dtype)


def normalised(o: Tensor, norm: nn.Module, name: str = "o_norm") -> Tensor:
    """Returns o over its root mean square times the norm's weight, computed in float32 at least.

    Args:
        o: (..., V).
        norm: with a weight (V,).
        name: of the norm in its mixer.
    """
    dtype = recurrent_dtype(o.dtype)
    norm = holding(norm, nn.RMSNorm, name)
    wide = bounded(o.to(dtype))
    return rms_norm(wide, norm.normalized_shape, norm.weight.to(dtype), norm.eps).to(o.dtype)


def decay_parameters(heads: int, steps: int, lowest: float) -> tuple[nn.Parameter, nn.Parameter]:
    """Returns ``A_log`` (heads,) and ``dt_bias`` (steps,) as Mamba-2 draws them.

    Args:
        heads: number of rates.
        steps: number of step sizes.
        lowest: the rates are drawn from here to 16.
    """
    rates = torch.empty(heads).uniform_(lowest, 16.0).clamp_min(1e-4)
    dt = torch.exp(torch.rand(steps) * math.log(100.0) + math.log(0.001)).clamp_min(1e-4)
    # Softplus gives dt.
    return nn.Parameter(rates.log()), nn.Parameter(dt + torch.log(-torch.expm1(-dt)))


def log_decay(x: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Returns g = -exp(A_log) · softplus(x + dt_bias), float32 at least.

    Args:
        x: (B, L, H) or (B, L, H, K).
        A_log: (H,).
        dt_bias: as many numbers as x has a position.
    """
    dtype = recurrent_dtype(x.dtype)
    rates = A_log.to(dtype).exp()
    steps = softplus(x.to(dtype) + dt_bias.to(dtype).view(x.shape[2:]))
    return -rates.view(-1, *[1] * (x.ndim - 3)) * steps


def head_width(name: str, head_dim: int, expand_v: float) -> int:
    """Returns ``head_dim · expand_v``.

    Raises:
        ConfigError: if that is no integer of at least 1.
    """
    width = head_dim * expand_v
    if width < 1 or not math.isclose(width, round(width), rel_tol=1e-6):
        raise ConfigError(
            f"{name}: head_dim · expand_v must be a whole number of at least 1, got {width!r}"
        )
    return round(width)
