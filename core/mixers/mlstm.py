"""mLSTM: the xLSTM layer with a matrix memory, exponential input gates and a stabiliser."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, linear, logsigmoid, silu

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import rotate, seen_from
from longseq.core.mixers._submodules import conv_weights
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.arguments import seen_by_nobody
from longseq.core.ops.backends import Backend, check_backend, convolution_backend
from longseq.core.ops.block_linear import block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from longseq.core.ops.gated_norm import gated_layer_norm
from longseq.core.ops.linear_maps import ANY_HOOKS, mapped, plain_map
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.mlstm.arguments import EPS
from longseq.core.ops.mlstm.reference import stepped
from longseq.core.ops.precision import bounded


class _HeadwiseLinear(nn.Module):
    """A block-diagonal linear map (..., W) to (..., W): weight (W/P, P, P), optional bias (W,)."""

    def __init__(self, width: int, block: int, bias: bool, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(width // block, block, block))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        (y,) = block_linear(x, self.weight)
        return y if self.bias is None else y + self.bias


def _headwise(x: Tensor, *maps: _HeadwiseLinear) -> list[Tensor]:
    """Applies maps with blocks of one size to the same input."""
    if not all(plain_map(m, ANY_HOOKS, _HeadwiseLinear) for m in maps):
        return [m(x) for m in maps]
    outputs = block_linear(x, *[m.weight for m in maps])
    return [y if m.bias is None else y + m.bias for y, m in zip(outputs, maps)]


class _HeadNorm(nn.Module):
    """Normalises each head of h (B, L, H, V) on its own, adds s · u and gates; the scale is stored
    less 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, u: Tensor, skip: Tensor, z: Tensor) -> Tensor:
        h = h.to(recurrent_dtype(h.dtype))
        weight = 1.0 + self.weight.to(h.dtype)
        if {u.dtype, z.dtype, skip.dtype} == {h.dtype}:
            return gated_layer_norm(h.flatten(2), z, weight, u, skip, h.shape[2])
        rows = bounded(h).flatten(0, 1).flatten(1)
        normed = group_norm(rows, h.shape[2], weight, eps=1e-5).view(*h.shape[:2], -1).to(u.dtype)
        return (normed + skip.to(u.dtype) * u) * silu(z)


class _Cell(nn.Module):
    """The gates and the norm of the matrix memory, under the published names."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.igate = nn.Linear(3 * width, n_heads)
        self.fgate = nn.Linear(3 * width, n_heads)
        self.outnorm = _HeadNorm(width)
        # Gates start independent of the input: memories of several lengths, small input gates.
        nn.init.zeros_(self.igate.weight)
        nn.init.normal_(self.igate.bias, std=0.1)
        nn.init.zeros_(self.fgate.weight)
        with torch.no_grad():
            self.fgate.bias.copy_(torch.linspace(3.0, 6.0, n_heads))


@register_mixer("mlstm")
class MLSTM(Mixer):
    """mLSTM layer (arXiv 2405.04517, section 2.3 and figure 11): up-projection, memory, gate,
    projection.

        x', z = W_up x;   u = SiLU(conv(x'));   q, k, v = W_q u, W_k u, W_v x'   (block-diagonal)
        ĩ, f̃ = W_i [q, k, v], W_f [q, k, v]
        h = LayerNorm(mLSTM(q, k, v, ĩ, f̃))        (``longseq.core.ops.mlstm``)
        y = W_down ((h + s · u) · SiLU(z))

    Parameters are named and shaped as in the published layer. With ``rotary_base``, queries and
    keys are turned by their positions behind the gates, feature 2p with 2p + 1 (RoPE, arXiv
    2104.09864, eq. 34), as DNA-xLSTM may do (2411.04165). Only the distances of positions matter,
    so the state is kept as seen from the next position and needs no count of those before it.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        proj_factor: the inner width is ``proj_factor · d_model`` ...
        round_up_to: ... rounded up to a multiple of this.
        d_conv: width of the causal convolution before queries and keys.
        qkv_block: width of the blocks of the query, key and value projections.
        bias: whether the projections have a bias.
        n_blocks: number of layers in the stack; scales the initial down-projection.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator, and of the convolution where it has that one; see
            ``longseq.core.ops.backends``.
        rotary_base: base of the rotary frequencies; None for no rotary positions.

    Raises:
        ConfigError: if ``n_heads`` or ``qkv_block`` does not divide the inner width, or a value is
            wrong.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        proj_factor: float = 2.0,
        round_up_to: int = 64,
        d_conv: int = 4,
        qkv_block: int = 4,
        bias: bool = False,
        n_blocks: int = 1,
        chunk_size: int = 128,
        backend: Backend = "auto",
        rotary_base: float | None = None,
    ) -> None:
        super().__init__(d_model)
        if proj_factor <= 0:
            raise ConfigError(f"proj_factor must be above 0, got {proj_factor!r}")
        check_positive("round_up_to", round_up_to)
        self.d_inner = math.ceil(proj_factor * d_model / round_up_to) * round_up_to
        self.d_head = check_divisible("inner width", self.d_inner, "n_heads", n_heads)
        check_divisible("inner width", self.d_inner, "qkv_block", qkv_block)
        if rotary_base is not None:
            if rotary_base <= 0:
                raise ConfigError(f"rotary_base must be above 0, got {rotary_base!r}")
            if self.d_head % 2:
                raise ConfigError(f"a head's width must be even to be rotated, got {self.d_head}")
        self.rotary_base = rotary_base
        self.n_heads, self.d_conv = n_heads, check_positive("d_conv", d_conv)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        std = math.sqrt(2 / (5 * d_model))
        self.proj_up = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.q_proj = _HeadwiseLinear(self.d_inner, qkv_block, bias, std)
        self.k_proj = _HeadwiseLinear(self.d_inner, qkv_block, bias, std)
        self.v_proj = _HeadwiseLinear(self.d_inner, qkv_block, bias, std)
        self.conv1d = nn.ModuleDict(
            {"conv": nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)}
        )
        self.mlstm_cell = _Cell(self.d_inner, n_heads)
        self.learnable_skip = nn.Parameter(torch.ones(self.d_inner))
        self.proj_down = nn.Linear(self.d_inner, d_model, bias=bias)
        nn.init.normal_(self.proj_up.weight, std=std)
        nn.init.normal_(
            self.proj_down.weight, std=2 / check_positive("n_blocks", n_blocks) / math.sqrt(d_model)
        )
        for projection in (self.proj_up, self.proj_down):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the inputs of the convolution, C (B, H, P, P), n (B, H, P) and m = -inf (B,
        H)."""
        device, dtype = self._where(device, dtype)
        kept = recurrent_dtype(dtype)
        heads, width = self.n_heads, self.d_head
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            "c": torch.zeros(batch, heads, width, width, device=device, dtype=kept),
            "n": torch.zeros(batch, heads, width, device=device, dtype=kept),
            "m": torch.full((batch, heads), -math.inf, device=device, dtype=kept),
        }

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        inner, z = mapped(self.proj_up, x).chunk(2, -1)
        u, history = causal_conv1d(
            inner,
            *conv_weights(self.conv1d["conv"], "conv1d.conv"),
            None if state is None else state["conv"],
            resets,
            activation="silu",
            backend=convolution_backend(self.backend),
        )
        (q, k), v = _headwise(u, self.q_proj, self.k_proj), self.v_proj(inner)
        i, f = _gates((q, k, v), self.mlstm_cell.igate, self.mlstm_cell.fgate)
        q, k, v = (part.unflatten(-1, (self.n_heads, self.d_head)) for part in (q, k, v))
        if self.rotary_base is not None:
            positions = torch.arange(x.shape[1], device=x.device)
            q, k = (rotate(_halves(part), positions, self.rotary_base) for part in (q, k))
        h, (c, n, m) = mlstm(
            q,
            k,
            v,
            i,
            f,
            None if state is None else (state["c"], state["n"], state["m"]),
            resets,
            self.chunk_size,
            backend=self.backend,
        )
        if self.rotary_base is not None:
            whole = torch.cat([c, n.unsqueeze(-1)], -1)
            c, n = seen_from(whole, x.shape[1], self.rotary_base).split([self.d_head, 1], -1)
            n = n.squeeze(-1)
        y = mapped(self.proj_down, self.mlstm_cell.outnorm(h, u, self.learnable_skip, z))
        return y, {"conv": history, "c": c, "n": n, "m": m}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``; on a CPU and without gradients past the operators' checks and
        dispatch, which at one position take longer than the arithmetic."""
        own = self.rotary_base is None and self.backend in ("auto", "cpu")
        own = own and x_t.dtype in (torch.float32, torch.float64)
        if not (own and seen_by_nobody(x_t, *state.values(), *self.parameters())):
            return super().step(x_t, state)
        inner, z = mapped(self.proj_up, x_t).chunk(2, -1)
        taps, bias = conv_weights(self.conv1d["conv"], "conv1d.conv")
        u, history = causal_conv1d_step(inner, taps, bias, state["conv"], "silu")
        (q, k), v = _headwise(u, self.q_proj, self.k_proj), self.v_proj(inner)
        whole, cell = torch.cat([q, k, v], -1), self.mlstm_cell
        i, f = cell.igate(whole), cell.fgate(whole)
        q, k, v = (part.unflatten(-1, (self.n_heads, self.d_head)) for part in (q, k, v))
        memory = (state["c"], state["n"], state["m"])
        h, (c, n, m) = stepped(q, k, v, i, logsigmoid(f), memory, EPS)
        h, u, z = (part.unsqueeze(1) for part in (h, u, z))
        y = mapped(self.proj_down, cell.outnorm(h, u, self.learnable_skip, z)).squeeze(1)
        return y, {"conv": history, "c": c, "n": n, "m": m}


def _halves(x: Tensor) -> Tensor:
    """Puts the features 2p before the features 2p + 1: ``rotate`` pairs p with p + P/2."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _gates(parts: Sequence[Tensor], *gates: nn.Linear) -> tuple[Tensor, ...]:
    """Returns gates before their nonlinearity, (B, L, H) each, as maps of the parts side by side.

    The biases, about 5, are added in full precision.
    """
    if not all(plain_map(gate, ANY_HOOKS) for gate in gates):
        whole = torch.cat(list(parts), -1)
        return tuple(y.to(recurrent_dtype(y.dtype)) for y in (gate(whole) for gate in gates))
    weight = torch.cat([gate.weight for gate in gates]).split(
        [part.shape[-1] for part in parts], -1
    )
    products = [linear(part, w) for part, w in zip(parts, weight)]
    dtype = recurrent_dtype(products[0].dtype)
    total = torch.stack(products).sum(0, dtype=dtype)
    bias = torch.cat([gate.bias for gate in gates])
    return (total + bias.to(dtype)).chunk(len(gates), -1)
