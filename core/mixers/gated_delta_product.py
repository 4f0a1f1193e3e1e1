"""Gated DeltaProduct: several corrections of the state per position, a product of Householder
matrices."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from longseq.core.checks import check_positive
from longseq.core.mixers._delta import DeltaMixer, decay_parameters, head_width, log_decay
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.ops.backends import Backend
from longseq.core.ops.delta_rule import delta_rule


@register_mixer("gated_delta_product")
class GatedDeltaProduct(DeltaMixer):
    """Gated DeltaProduct (arXiv 2502.10297, eq. 3 and section 3).

        q, k_j, v_j = SiLU(conv(W x)),   q and k_j over their norms,   β_tj = 2 σ(W_βj x_t),   j = 1
        … n H_t0 = α_t S_{t-1},   H_tj = H_{t,j-1} + β_tj k_tj (v_tj - H_{t,j-1}ᵀ k_tj)ᵀ,   S_t =
        H_tn o_t = S_tᵀ q_t / √K,   y = W_o (RMSNorm(o) · SiLU(W_g x)),   normalised head by head

    The transition α_t Π_j (I - β_tj k_tj k_tjᵀ) can be any rotation of n dimensions at most: with n
    ≥ 2 it tracks the states of groups that are not commutative. It is the delta rule over n
    positions per position.

    Parameters are named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        head_dim: key width K of a head; None for three quarters of ``d_model`` over the heads,
            rounded down.
        expand_v: value width of a head over ``head_dim``.
        num_householder: n.
        use_forget_gate: whether there is a decay α.
        conv_size: taps of the convolutions.
        conv_bias: whether the convolutions have a bias.
        allow_neg_eigval: whether β goes up to 2 instead of 1.
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``head_dim · expand_v`` is no whole number or a value is out of range.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_log", "dt_bias")

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        head_dim: int | None = None,
        expand_v: float = 2.0,
        num_householder: int = 2,
        use_forget_gate: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = True,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        d_model, n_heads = check_positive("d_model", d_model), check_positive("n_heads", n_heads)
        if head_dim is None:
            head_dim = max(1, 3 * d_model // (4 * n_heads))
        d_value = head_width("gated_delta_product", check_positive("head_dim", head_dim), expand_v)
        writes = check_positive("num_householder", num_householder)
        super().__init__(
            d_model,
            n_heads,
            head_dim,
            d_value,
            writes,
            conv_size,
            conv_bias,
            allow_neg_eigval,
            chunk_size,
            backend,
        )
        self.a_proj: nn.Linear | None = None
        if use_forget_gate:
            self.a_proj = nn.Linear(d_model, n_heads, bias=False)
            self.A_log, self.dt_bias = decay_parameters(n_heads, n_heads, 0.0)
        else:
            self.ssm_parameters = ()  # type: ignore[misc]
        self.g_proj = nn.Linear(d_model, n_heads * d_value, bias=False)
        self.o_norm = GatedRMSNorm(d_value, eps=norm_eps)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        n, resets = self.writes, segment_resets(segment_ids)
        q, k, v, beta, conv = self._project(x, state, resets)
        # A position forgets before its first write, and is read behind its last.
        q = pad(q.unsqueeze(2), (0, 0, 0, 0, n - 1, 0)).flatten(1, 2)
        g = None
        if self.a_proj is not None:
            g = log_decay(self.a_proj(x), self.A_log, self.dt_bias)
            g = pad(g.unsqueeze(2), (0, 0, 0, n - 1)).flatten(1, 2)
        cleared: torch.Tensor | None = None
        if resets is not None:
            cleared = pad(resets.unsqueeze(2), (0, n - 1)).flatten(1, 2)
        o, kv = delta_rule(
            q,
            k,
            v,
            beta,
            g,
            initial_state=None if state is None else state["kv"],
            resets=cleared,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        gate = self.g_proj(x).unflatten(-1, (self.n_heads, -1))
        return self.o_proj(self.o_norm(o[:, n - 1 :: n], gate).flatten(2)), {"conv": conv, "kv": kv}
