"""LongVQ: gated attention to a codebook, with a moving average for what is near in time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from longseq.core.checks import check_positive
from longseq.core.mixers._attention import attention, chunk_starts, positions_in_pack
from longseq.core.mixers.base import State, register_mixer, segment_resets
from longseq.core.mixers.mega import Mega
from longseq.core.ops.precision import bounded

_EPS = 1e-6


@register_mixer("longvq")
class LongVQ(Mega):
    """Vector quantisation on structured memory (arXiv 2404.11163; attention to quantised keys
    as in Transformer-VQ, 2309.16354).

        X' = EMA(X),  Z = SiLU(W_z X'),  Q = κ_q Z + μ_q,  K = RMSNorm(κ_k Z + μ_k)
        V = SiLU(W_v X),   K̂_s = C_{c(s)},   c(s) = argmin_c ‖K_s - C_c‖
        O_t = softmax_s(Q_tᵀ K_s / √z + b_{t-s} in the chunk of t, Q_tᵀ K̂_s / √z before it) V_s
        Ĥ = SiLU(W_h X' + U_h (SiLU(W_γ X') · O)),  φ = σ(W_φ X'),   Y = φ Ĥ + (1 - φ) X

    Mega with attention to everything before, at a cost that grows with L: positions with the same
    code have the same score, so that of finished chunks only the number and the sum of values per
    code are kept. The state is constant in L: the average's, the codes' sums, and keys and values
    of the chunk so far. The published model quantises the chunk's own keys too and passes their
    gradient through as though that were the identity. Here they are exact, so that every gradient
    is one: K learns from its own chunk, codes learn as the keys that they stand for.

    Args:
        d_model: width D.
        codes: size of the codebook.
        d_attention: width z of queries and keys.
        d_value: width of values; None for 2 D.
        d_ema: dimensions n of the average per channel.
        window: positions in a chunk.

    Raises:
        ConfigError: if a value is out of range.
    """

    closed_length = "it goes from chunk to chunk; export it for one length"

    def __init__(
        self,
        d_model: int,
        codes: int = 64,
        d_attention: int = 64,
        d_value: int | None = None,
        d_ema: int = 16,
        window: int = 128,
    ) -> None:
        super().__init__(d_model, d_attention, d_value, d_ema, window)
        self.codebook = nn.Parameter(torch.randn(check_positive("codes", codes), d_attention))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns ``Mega``'s state, and the number (B, S) and the sum of values (B, S, V) of each
        code in the finished chunks."""
        state = super().init_state(batch, device, dtype)
        shape = (batch, len(self.codebook), self.d_value)
        sums = torch.zeros(shape, device=state["k"].device, dtype=state["k"].dtype)
        counts = torch.zeros(shape[:2], device=sums.device, dtype=torch.long)
        return {**state, "counts": counts, "sums": sums}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``.

        Raises:
            ArgumentError: under a compiler or a transform with a state or packed sequences.
            ConfigError: if it is exported for an open length.
        """
        resets, begins = segment_resets(segment_ids), state is None
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        positions = positions_in_pack(resets, state["seen"], x.shape[1]) % self.window
        plain = begins and resets is None
        cuts = chunk_starts(type(self).__name__, x, positions, self.window, plain)
        averaged, carried = self._average(x, state, resets)
        v = silu(self.v_proj(x))
        update, z, gate, own = self.mx_proj(averaged).split(
            [self.d_model, self.d_attention, self.d_value, self.d_model], -1
        )
        z = silu(z)
        q, k = (z * kappa + mu for kappa, mu in zip(self.kappa.unbind(), self.mu.unbind()))
        k = bounded(k)
        k = k * torch.rsqrt(k.square().mean(-1, keepdim=True) + _EPS)
        k = torch.cat([state["k"].to(k.dtype), k], 1)
        v = torch.cat([state["v"].to(v.dtype), v], 1)
        read, counts, sums = self._read(q, k, v, positions, resets, state, cuts)
        h = silu(own + self.h_proj(silu(gate) * read))
        mixed = torch.sigmoid(update)
        before = self.window - 1
        after: State = {
            **carried,
            "k": k[:, k.shape[1] - before :].to(state["k"].dtype),
            "v": v[:, v.shape[1] - before :].to(state["v"].dtype),
            "seen": (positions[:, -1] + 1) % self.window,
            "counts": counts,
            "sums": sums,
        }
        return mixed * h + (1 - mixed) * x, after

    def _nearest(self, k: Tensor) -> Tensor:
        """Returns the code of each key, integers (B, L)."""
        codebook = self.codebook.detach().to(k.dtype)
        nearness = k.detach() @ codebook.mT - codebook.square().sum(-1) / 2
        return nearness.argmax(-1)

    def _read(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        resets: Tensor | None,
        state: State,
        cuts: list[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attends, piece by piece; no row's chunk begins inside a piece.

        Args:
            q: queries (B, L, z).
            k: keys, ``window`` - 1 of the past first (B, window - 1 + L, z).
            v: likewise (B, window - 1 + L, V).
            positions: of each position in its chunk (B, L).
            resets: bool (B, L) or None.
            state: before position 0.
            cuts: first positions of the pieces.

        Returns:
            (B, L, V), and the codes' numbers and sums behind the last position.
        """
        counts, sums, outputs, before = state["counts"], state["sums"], [], self.window - 1
        codebook = self.codebook.to(q.dtype).expand(len(q), -1, -1)
        for lo, hi in pairwise([*cuts, q.shape[1]]):
            if resets is not None:
                fresh = resets[:, lo]
                counts = counts.masked_fill(fresh[:, None], 0)
                sums = sums.masked_fill(fresh[:, None, None], 0.0)
            means = sums / counts.clamp(min=1).unsqueeze(-1)
            place = torch.arange(before + hi - lo, device=q.device)
            distance = place[before:, None] - place
            hidden = (distance < 0) | (distance > positions[:, lo:hi, None])
            near = self.relative[distance.clamp(0, before)].to(q.dtype).expand(hidden.shape)
            # A code's score counts as often as it has been; log 0 hides it.
            far = counts.to(q.dtype).log().unsqueeze(1).expand(-1, hi - lo, -1)
            outputs.append(
                attention(
                    q[:, lo:hi],
                    torch.cat([k[:, lo : hi + before], codebook], 1),
                    torch.cat([v[:, lo : hi + before], means.to(v.dtype)], 1),
                    torch.cat([near.masked_fill(hidden, -torch.inf), far], 2),
                )
            )
            # A chunk that ends here joins the sums.
            ended = positions[:, hi - 1] == before
            chunk = slice(hi - 1, hi + before)  # of the keys, which begin with those of the past
            # Compared, as torch's one_hot looks at values, which vmap does not allow.
            every = torch.arange(counts.shape[1], device=k.device)
            codes = (self._nearest(k[:, chunk]).unsqueeze(-1) == every).long()
            codes = codes * ended[:, None, None]
            counts = counts + codes.sum(1)
            sums = sums + codes.to(sums.dtype).mT @ v[:, chunk].to(sums.dtype)
        return torch.cat(outputs, 1), counts, sums
