"""Atlas: a memory that is optimised over a sliding window of keys and values."""

from __future__ import annotations

from longseq.core.mixers._memory import MemoryMixer
from longseq.core.mixers.base import register_mixer


@register_mixer("atlas")
class Atlas(MemoryMixer):
    """Memory with the Omega rule (arXiv 2505.23735: the Omega rule, its polynomial keys, and
    Atlas' update with Muon).

        S_t = η_t S_{t-1} - Σ_i γ_i ∇½‖M_c(φ(k_i)) - v_i‖²  over  t - c < i ≤ t
        M_t = (1 - α_t) M_{t-1} + θ_t NewtonSchulz(S_t),   y_t = W_o RMSNorm(M_t(φ(q_t)))

    M_c is the memory before the chunk that t is in. Each step takes the errors of the last c pairs
    at the present memory, where the delta rule sees the last pair alone; γ, a gate of the input,
    says which of them count. φ(k) = (√a k, √b k ⊗ k), a + b = 1, lets a matrix hold about P²/2
    pairs in place of P. ``orthogonal=0`` takes S_t with θ_t before the sum as the step: OmegaNet.

    Args:
        d_model: width D.
        n_heads: number of heads H; a head's keys and values are D / H wide.
        layers: of M: 1 for a matrix, 2 for M(k) = k + W_2 SiLU(W_1 φ(k)).
        d_hidden: hidden width of a deep M; None for twice a head's.
        window: positions c.
        degree: of φ: 1 for the keys themselves, 2 for their products in pairs too.
        orthogonal: Muon's iterations; 0 for none. They form S_t for every position.
        chunk: positions whose gradients are taken at the same memory. Part of the definition.
        max_step: bound of θ; None for min(1, 2 (1 - η_t)) / (``chunk`` · c), with which a linear M
            converges over a run of equal inputs; with ``orthogonal``, for 1 / (``chunk`` · c).
        conv_size: taps of the convolutions of queries, keys and values.
        norm_eps: added to the mean square in the norm.
        backend: of the convolutions; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the width or a value is out of range.
    """
