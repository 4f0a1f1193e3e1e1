"""DeltaNet: a matrix state in which every key's value is corrected, not added to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.checks import check_divisible, check_positive
from longseq.core.mixers._delta import DeltaMixer, normalised
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.ops.backends import Backend
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.linear_maps import mapped


@register_mixer("delta_net")
class DeltaNet(DeltaMixer):
    """DeltaNet (arXiv 2406.06484, eq. 4 and section 3.3; arXiv 2102.11174, eq. 24).

        q, k, v = SiLU(conv(W x)),   q and k over their norms,   β_t = σ(W_β x_t)
        S_t = S_{t-1} + β_t k_t (v_t - S_{t-1}ᵀ k_t)ᵀ,   o_t = S_tᵀ q_t / √K
        y = W_o RMSNorm(o), normalised head by head; with ``use_gate`` times SiLU(W_g x)

    Parameters are named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        expand_k: width of queries and keys over ``d_model``.
        expand_v: width of values over ``d_model``.
        use_gate: whether the output is gated.
        conv_size: taps of the convolutions.
        conv_bias: whether the convolutions have a bias.
        allow_neg_eigval: whether β goes up to 2, and the transition's eigenvalues down to -1, as
            state tracking needs (arXiv 2411.12537).
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the key or value width or a value is out of
            range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        use_gate: bool = False,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        d_model = check_positive("d_model", d_model)
        key = check_positive("expand_k · d_model", int(d_model * expand_k))
        value = check_positive("expand_v · d_model", int(d_model * expand_v))
        super().__init__(
            d_model,
            n_heads,
            check_divisible("expand_k · d_model", key, "n_heads", n_heads),
            check_divisible("expand_v · d_model", value, "n_heads", n_heads),
            1,
            conv_size,
            conv_bias,
            allow_neg_eigval,
            chunk_size,
            backend,
        )
        self.g_proj = nn.Linear(d_model, value, bias=False) if use_gate else None
        self.o_norm: nn.Module
        if use_gate:
            self.o_norm = GatedRMSNorm(self.d_value, eps=norm_eps)
        else:
            self.o_norm = nn.RMSNorm(self.d_value, eps=norm_eps)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        q, k, v, beta, conv = self._project(x, state, resets)
        o, kv = delta_rule(
            q,
            k,
            v,
            beta,
            initial_state=None if state is None else state["kv"],
            resets=resets,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        return mapped(self.o_proj, self._normalise(x, o).flatten(2)), {"conv": conv, "kv": kv}

    def _normalise(self, x: Tensor, o: Tensor) -> Tensor:
        """Normalises each head's output, and gates it where there is a gate."""
        if self.g_proj is None:
            return normalised(o, self.o_norm)
        gated: torch.Tensor = self.o_norm(
            o, mapped(self.g_proj, x).unflatten(-1, (self.n_heads, -1))
        )
        return gated
