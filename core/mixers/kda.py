"""Kimi delta attention: the delta rule in a matrix state that forgets each key channel at its own
pace."""

from __future__ import annotations

from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.mixers._delta import (
    DeltaMixer,
    decay_parameters,
    head_width,
    log_decay,
    normalised,
)
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.ops.backends import Backend
from longseq.core.ops.delta_rule import delta_rule


@register_mixer("kda")
class KDA(DeltaMixer):
    """Kimi delta attention (arXiv 2510.26692, eq. 1 and section 4).

        q, k, v = SiLU(conv(W x)),   q and k over their norms,   β_t = σ(W_β x_t)
        α_t = exp(-exp(A) · softplus(W_2 W_1 x_t + b)), a number per key channel
        S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ,   o_t = S_tᵀ q_t / √K
        y = W_o (RMSNorm(o) · σ(W_g2 W_g1 x + c)),   normalised head by head

    Parameters are named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        head_dim: key width K of a head; None for ``d_model`` over the heads, rounded down.
        expand_v: value width of a head over ``head_dim``; also the rank of the decay's and the
            gate's maps.
        conv_size: taps of the convolutions.
        conv_bias: whether the convolutions have a bias.
        allow_neg_eigval: whether β goes up to 2, and the transition's eigenvalues below 0.
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
        expand_v: float = 1.0,
        conv_size: int = 4,
        conv_bias: bool = False,
        allow_neg_eigval: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        d_model, n_heads = check_positive("d_model", d_model), check_positive("n_heads", n_heads)
        if head_dim is None:
            head_dim = max(1, d_model // n_heads)
        d_value = head_width("kda", check_positive("head_dim", head_dim), expand_v)
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
        self.f_proj = nn.Sequential(
            nn.Linear(d_model, d_value, bias=False),
            nn.Linear(d_value, n_heads * head_dim, bias=False),
        )
        self.A_log, self.dt_bias = decay_parameters(n_heads, n_heads * head_dim, 1.0)
        self.g_proj = nn.Sequential(
            nn.Linear(d_model, d_value, bias=False), nn.Linear(d_value, n_heads * d_value)
        )
        self.o_norm = nn.RMSNorm(d_value, eps=norm_eps)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        q, k, v, beta, conv = self._project(x, state, resets)
        decay, gate = (
            map_(x).unflatten(-1, (self.n_heads, -1)) for map_ in (self.f_proj, self.g_proj)
        )
        o, kv = delta_rule(
            q,
            k,
            v,
            beta,
            log_decay(decay, self.A_log, self.dt_bias),
            initial_state=None if state is None else state["kv"],
            resets=resets,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        y = normalised(o, self.o_norm) * gate.sigmoid()
        return self.o_proj(y.flatten(2)), {"conv": conv, "kv": kv}
