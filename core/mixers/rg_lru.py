r"""RG-LRU in Griffin's recurrent block: a diagonal recurrence gated by its input, as in
RecurrentGemma."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from longseq.core.checks import check_divisible, check_positive
from longseq.core.mixers._submodules import conv_weights
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.arguments import readable
from longseq.core.ops.backends import Backend, check_backend, convolution_backend
from longseq.core.ops.block_linear import MAX_BLOCK, block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.precision import autocast_off

_C = 8.0  # the paper's constant c
_STEEP = 1000.0  # bound of the derivative of the square root, which grows without end towards a = 1


class _Cell(nn.Module):
    """The gates of the RG-LRU under the published names; maps are block-diagonal, a block a head.

    Args:
        width: channels W.
        n_heads: blocks H.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        block = check_divisible("d_inner", width, "n_heads", n_heads)
        shape = (n_heads, block, block)
        std = (0.01 / block) ** 0.5
        self.input_gate_weight = nn.Parameter(std * torch.randn(shape))
        self.input_gate_bias = nn.Parameter(torch.zeros(n_heads, block))
        self.recurrent_gate_weight = nn.Parameter(std * torch.randn(shape))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(n_heads, block))
        decay = torch.empty(width).uniform_(0.9**2, 0.999**2).sqrt()
        self.recurrent_param = nn.Parameter(torch.expm1(-decay.log()).log())

    def _gates(self, u: Tensor) -> list[Tensor]:
        """Returns the recurrent and the input gate (..., W); narrow maps are one pass over u."""
        weights = self.recurrent_gate_weight.to(u.dtype), self.input_gate_weight.to(u.dtype)
        biases = self.recurrent_gate_bias.to(u.dtype), self.input_gate_bias.to(u.dtype)
        if weights[0].shape[-1] <= MAX_BLOCK:
            maps = block_linear(u, *[weight.transpose(1, 2) for weight in weights])
            return [torch.sigmoid(one + bias.flatten()) for one, bias in zip(maps, biases)]
        heads = u.unflatten(-1, biases[0].shape)
        maps = [torch.einsum("...hi,hij->...hj", heads, weight) for weight in weights]
        return [torch.sigmoid((one + bias).flatten(-2)) for one, bias in zip(maps, biases)]

    def forward(self, u: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the decay a and what is added to the state, both in float32 at least.

        Args:
            u: input (..., W).
            first: bool (...), true at the first position of a sequence, whose input is not scaled.
        """
        with autocast_off(u):
            u = u.to(recurrent_dtype(u.dtype))
            rate, gate = self._gates(u)
            log_a = rate * (-_C * softplus(self.recurrent_param.to(u.dtype)))
            scale = _bounded_sqrt(-torch.expm1(2 * log_a)).masked_fill(first.unsqueeze(-1), 1.0)
            entered = u * gate * scale
            return log_a.exp(), entered


def _bounded_sqrt(x: Tensor) -> Tensor:
    """Returns √x with a derivative of at most ``_STEEP``, as published."""
    low = 0.25 / _STEEP**2
    if x.device.type == "cpu" and readable(x) and x.numel() and float(x.detach().amin()) >= low:
        return x.sqrt()  # nowhere that steep, as nearly always
    steep = x.clamp_min(0).sqrt().detach() + (x - x.detach()) * _STEEP
    return torch.where(x < low, steep, x.clamp_min(low).sqrt())


@register_mixer("rg_lru")
class RGLRU(Mixer):
    """Griffin's recurrent block around the RG-LRU (arXiv 2402.19427, sections 2.3 and 2.4).

        u = conv(W_x x);   r, i = σ(W_a u + b_a), σ(W_i u + b_i)   (block-diagonal)
        a_t = exp(-8 softplus(Λ) r_t);   h_t = a_t h_{t-1} + √(1 - a_t²) (i_t · u_t)
        y = W_out (h · GELU(W_y x))

    The first position of a sequence enters without the factor √(1 - a²), as published.
    Parameters are named and shaped as in RecurrentGemma's.

    Args:
        d_model: width D.
        d_inner: channels W of the recurrence; None for D.
        n_heads: blocks of the gates' maps.
        d_conv: taps of the short convolution.
        backend: of the recurrence and the convolution; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the channels, or a size is not positive.
    """

    ssm_parameters = ("rg_lru.recurrent_param",)

    def __init__(
        self,
        d_model: int,
        d_inner: int | None = None,
        n_heads: int = 4,
        d_conv: int = 4,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_inner = d_model if d_inner is None else check_positive("d_inner", d_inner)
        self.d_conv, self.backend = check_positive("d_conv", d_conv), check_backend(backend)
        self.linear_y = nn.Linear(d_model, self.d_inner)
        self.linear_x = nn.Linear(d_model, self.d_inner)
        self.conv_1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)
        self.rg_lru = _Cell(self.d_inner, n_heads)
        self.linear_out = nn.Linear(self.d_inner, d_model)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the convolution's inputs (B, d_conv - 1, W), h (B, W), and whether a position was
        seen (B,)."""
        device, dtype = self._where(device, dtype)
        kept = recurrent_dtype(dtype)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            "h": torch.zeros(batch, self.d_inner, device=device, dtype=kept),
            "seen": torch.zeros(batch, device=device, dtype=torch.bool),
        }

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        state = self.init_state(x.shape[0], x.device, x.dtype) if state is None else state
        resets = segment_resets(segment_ids)
        u, conv = causal_conv1d(
            self.linear_x(x),
            *conv_weights(self.conv_1d, "conv_1d"),
            state["conv"],
            resets,
            backend=convolution_backend(self.backend),
        )
        first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        first = first if resets is None else resets
        first = torch.cat([~state["seen"][:, None], first[:, 1:]], 1)
        a, entered = self.rg_lru(u, first)
        if resets is not None:
            a = a.masked_fill(resets.unsqueeze(-1), 0.0)
        h, last = linear_scan(a, entered, state["h"], backend=self.backend)
        y = self._finish(h, x)
        return y, {"conv": conv, "h": last, "seen": torch.ones_like(state["seen"])}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``."""
        u, conv = causal_conv1d_step(
            self.linear_x(x_t),
            *conv_weights(self.conv_1d, "conv_1d"),
            state["conv"],
            backend=convolution_backend(self.backend),
        )
        a, entered = self.rg_lru(u, ~state["seen"])
        h = a * state["h"] + entered
        after = {"conv": conv, "h": h, "seen": torch.ones_like(state["seen"])}
        return self._finish(h, x_t), after

    def _finish(self, h: Tensor, x: Tensor) -> Tensor:
        gate = gelu(self.linear_y(x), approximate="tanh")
        out: Tensor = self.linear_out(h.to(gate.dtype) * gate)
        return out
