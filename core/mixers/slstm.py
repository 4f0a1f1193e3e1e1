"""sLSTM: the xLSTM layer with scalar memories, exponential gates and recurrent weights inside each
head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._submodules import conv_weights
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.block_linear import MAX_BLOCK, block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.linear_maps import ANY_HOOKS, plain_map
from longseq.core.ops.precision import autocast_dtype
from longseq.core.ops.slstm import SLSTMState, slstm

_WIDE = 8  # units of a head from which on torch's layer norm is quicker than its group norm


class _HeadwiseLinear(nn.Module):
    """A linear map inside each head, without bias: (..., D) to (..., D), weight (H, P, P)."""

    def __init__(self, n_heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(n_heads, width, width) * math.sqrt(2 / (5 * n_heads * width))
        )

    def forward(self, x: Tensor) -> Tensor:
        heads, _, width = self.weight.shape
        return torch.einsum(
            "...hp,hop->...ho", x.unflatten(-1, (heads, width)), self.weight
        ).flatten(-2)


def _headwise(x: Tensor, *maps: nn.Module) -> list[Tensor]:
    """Applies maps of one width to the same input, narrow ones in one pass over it."""
    plain = autocast_dtype(x) is None
    plain = plain and all(plain_map(one, ANY_HOOKS, _HeadwiseLinear) for one in maps)
    weights = [one.weight for one in maps if plain and isinstance(one, _HeadwiseLinear)]
    if weights and all(w.dtype == x.dtype and w.shape[-1] <= MAX_BLOCK for w in weights):
        return block_linear(x, *weights)
    return [one(x) for one in maps]


class _Conv(nn.Module):
    """Holds the weights of the causal convolution one level down, as published."""

    def __init__(self, d_model: int, d_conv: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(d_model, d_model, d_conv, groups=d_model)


class _Cell(nn.Module):
    """The recurrence's own parameters, under the names and in the order of the published layer.

    ``_recurrent_kernel_`` is (H, 4P, P) and ``_bias_`` is (4D,), gates first, in the order i, f, z,
    o.
    """

    def __init__(self, n_heads: int, width: int, depth: float) -> None:
        super().__init__()
        self._recurrent_kernel_ = nn.Parameter(torch.zeros(n_heads, 4 * width, width))
        # Forget biases fall from 5 to -7 across a head as a power law, steeper in shallow layers:
        # memories of many lengths from the first step of training.
        unit = torch.arange(width) / max(width - 1, 1)
        bias = torch.zeros(4, n_heads, width)
        bias[1] = 5.0 - 12.0 * unit ** (0.3 + 1.3 * depth)
        self._bias_ = nn.Parameter(bias.flatten())


class _HeadNorm(nn.Module):
    """Normalises each head on its own; the scale is stored as its difference from 1, as
    published."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.weight = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        weight = 1.0 + self.weight
        heads = x.unflatten(-1, (self.n_heads, -1))
        if heads.shape[-1] < _WIDE or x.dtype not in (torch.float32, torch.float64):
            return F.group_norm(x.flatten(0, 1), self.n_heads, weight, eps=1e-5).view_as(x)
        # The same, in half the time and less.
        return F.layer_norm(heads, heads.shape[-1:], eps=1e-5).flatten(-2) * weight


@register_mixer("slstm")
class SLSTM(Mixer):
    """sLSTM layer (arXiv 2405.04517, section 2.2 and figure 10), without the block's feed-forward
    part.

        u = SiLU(conv(x));  ĩ, f̃ = W_i u, W_f u;  z̃, õ = W_z x, W_o x   (each W inside a head)
        y = GroupNorm(sLSTM(ĩ, f̃, z̃, õ))
        (``longseq.core.ops.slstm``)

    Parameters are named and shaped as in the published layer, ``fgate`` and ``igate`` included:
    there the weight called ``fgate`` feeds the input gate and ``igate`` the forget gate, and so it
    does here, or published weights would compute something else.

    Args:
        d_model: width D.
        n_heads: number of heads H; the recurrent weights mix units only inside a head.
        d_conv: width of the causal convolution that feeds the input and forget gates; 0 for none.
        depth: place of the layer in its stack, from 0 (first) to 1 (last); sets the initial forget
            gates.
        dropout: probability of dropping a unit of h in training.

    Raises:
        ConfigError: if ``n_heads`` does not divide ``d_model`` or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        d_conv: int = 4,
        depth: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model)
        width = check_divisible("d_model", d_model, "n_heads", n_heads)
        if d_conv != 0:
            check_positive("d_conv", d_conv)
        if not 0 <= depth <= 1:
            raise ConfigError(f"depth must be between 0 and 1, got {depth!r}")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.n_heads, self.d_head, self.d_conv = n_heads, width, d_conv
        if d_conv:
            self.conv1d = _Conv(d_model, d_conv)
        self.fgate = _HeadwiseLinear(n_heads, width)
        self.igate = _HeadwiseLinear(n_heads, width)
        self.zgate = _HeadwiseLinear(n_heads, width)
        self.ogate = _HeadwiseLinear(n_heads, width)
        self.slstm_cell = _Cell(n_heads, width, depth)
        self.group_norm = _HeadNorm(d_model, n_heads)
        self.dropout = nn.Dropout(dropout)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns h, c, n, m (B, H, P), at least float32, and the convolution's inputs (B, d_conv -
        1, D)."""
        device, dtype = self._where(device, dtype)
        fresh = SLSTMState.fresh(batch, self.n_heads, self.d_head, device, recurrent_dtype(dtype))
        state: State = fresh._asdict()
        if self.d_conv:
            state["conv"] = torch.zeros(
                batch, self.d_conv - 1, self.d_model, device=device, dtype=dtype
            )
        return state

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        state = self.init_state(x.shape[0], x.device, x.dtype) if state is None else state
        after: State = {}
        u = x
        if self.d_conv:
            weight, bias = conv_weights(self.conv1d.conv, "conv1d.conv")
            u, after["conv"] = causal_conv1d(
                x, weight, bias, state["conv"], resets, activation="silu"
            )
        maps = [*_headwise(u, self.fgate, self.igate), *_headwise(x, self.zgate, self.ogate)]
        dtype = maps[0].dtype
        # The bias in full precision: it is added to the logarithm of a gate, not to an activation.
        biases = self.slstm_cell._bias_.view(4, self.d_model)
        wide = torch.promote_types(dtype, biases.dtype)
        # Added before the maps are joined: that is one pass less over all four.
        gates = torch.stack([one.to(wide) + bias for one, bias in zip(maps, biases)], 2)
        h, last = slstm(
            gates.unflatten(3, (self.n_heads, self.d_head)),
            self.slstm_cell._recurrent_kernel_,
            SLSTMState(state["h"], state["c"], state["n"], state["m"]),
            resets,
        )
        y = self.group_norm(self.dropout(h.flatten(2)))
        return y.to(dtype), {**last._asdict(), **after}
