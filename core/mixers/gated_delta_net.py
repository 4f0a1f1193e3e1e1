"""Gated DeltaNet: the delta rule in a matrix state that forgets at a data-dependent pace, one per
head."""

from __future__ import annotations

from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.mixers._delta import DeltaMixer, decay_parameters, head_width, log_decay
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.ops.backends import Backend
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.linear_maps import mapped


@register_mixer("gated_delta_net")
class GatedDeltaNet(DeltaMixer):
    """Gated DeltaNet (arXiv 2412.06464, eq. 10 and figure 1).

        q, k, v = SiLU(conv(W x)),   q and k over their norms,   β_t = σ(W_β x_t)
        α_t = exp(-exp(A) · softplus(W_α x_t + b))
        S_t = α_t S_{t-1} + β_t k_t (v_t - α_t S_{t-1}ᵀ k_t)ᵀ,   o_t = S_tᵀ q_t / √K
        y = W_o (RMSNorm(o) · SiLU(W_g x)),   normalised head by head

    Parameters are named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        head_dim: key width K of a head; None for three quarters of ``d_model`` over the heads,
            rounded down.
        expand_v: value width of a head over ``head_dim``.
        conv_size: taps of the convolutions.
        conv_bias: whether the convolutions have a bias.
        allow_neg_eigval: whether β goes up to 2, and the transition's eigenvalues below 0, as state
            tracking needs (arXiv 2411.12537).
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``head_dim · expand_v`` is no whole number or a value is out of range.
    """

    ssm_parameters = ("A_log", "dt_bias")

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        head_dim: int | None = None,
        expand_v: float = 2.0,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        d_model, n_heads = check_positive("d_model", d_model), check_positive("n_heads", n_heads)
        if head_dim is None:
            head_dim = max(1, 3 * d_model // (4 * n_heads))
        d_value = head_width("gated_delta_net", check_positive("head_dim", head_dim), expand_v)
        super().__init__(
            d_model,
            n_heads,
            head_dim,
            d_value,
            1,
            conv_size,
            conv_bias,
            allow_neg_eigval,
            chunk_size,
            backend,
        )
        self.a_proj = nn.Linear(d_model, n_heads, bias=False)
        self.A_log, self.dt_bias = decay_parameters(n_heads, n_heads, 0.0)
        self.g_proj = nn.Linear(d_model, n_heads * d_value, bias=False)
        self.o_norm = GatedRMSNorm(d_value, eps=norm_eps)

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
            log_decay(self.a_proj(x), self.A_log, self.dt_bias),
            initial_state=None if state is None else state["kv"],
            resets=resets,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        gate = mapped(self.g_proj, x).unflatten(-1, (self.n_heads, -1))
        return mapped(self.o_proj, self.o_norm(o, gate).flatten(2)), {"conv": conv, "kv": kv}
