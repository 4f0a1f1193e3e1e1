"""Titans: a neural memory that is trained at test time, with momentum and forgetting."""

from __future__ import annotations

from longseq.core.mixers._memory import MemoryMixer
from longseq.core.mixers.base import register_mixer
from longseq.core.ops.backends import Backend


@register_mixer("titans")
class Titans(MemoryMixer):
    """Long-term memory of Titans as a layer of its own (arXiv 2501.00663, eq. 8-15 and section
    3.2).

        S_t = η_t S_{t-1} - θ_t ∇½‖M_c(k_t) - v_t‖²
        M_t = (1 - α_t) M_{t-1} + S_t,   y_t = W_o RMSNorm(M_t(q_t))

    M_c is the memory before the chunk that t is in; q, k, v pass through short convolutions and
    SiLU, and q and k have norm 1. The surprise S of earlier positions goes on by η, and α forgets;
    both, and the step θ, are gates of the input. M begins each sequence as a trained parameter. A
    linear M with chunks of one position, η = 0 and α = 0 is the delta rule.

    Args:
        d_model: width D.
        n_heads: number of heads H; a head's keys and values are D / H wide.
        layers: of M: 1 for a matrix, 2 for M(k) = k + W_2 SiLU(W_1 k).
        d_hidden: hidden width of a deep M; None for twice a head's.
        chunk: positions whose gradients are taken at the same memory. Part of the definition: more
            are faster and see older errors.
        max_step: bound of θ; None for min(1, 2 (1 - η_t)) / ``chunk``, with which a linear M
            converges over a run of equal inputs, whatever the gates. A deep M has no such bound.
        conv_size: taps of the convolutions of queries, keys and values.
        norm_eps: added to the mean square in the norm.
        backend: of the convolutions; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the width or a value is out of range.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        layers: int = 1,
        d_hidden: int | None = None,
        chunk: int = 8,
        max_step: float | None = None,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
        backend: Backend = "auto",
    ) -> None:
        shape = (d_model, n_heads, layers, d_hidden, 1, 1, 0, chunk)
        super().__init__(*shape, max_step, conv_size, norm_eps, backend)
