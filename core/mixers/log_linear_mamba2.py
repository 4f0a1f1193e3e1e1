"""Log-linear Mamba-2: a state for each scale of the past, as the nodes of a Fenwick tree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import positions_in_pack
from longseq.core.mixers._submodules import conv_weights
from longseq.core.mixers.base import State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.mixers.mamba2 import Mamba2
from longseq.core.ops.backends import convolution_backend
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.precision import autocast_off


@register_mixer("log_linear_mamba2")
class LogLinearMamba2(Mamba2):
    """Mamba-2 with log-linear attention (arXiv 2506.04761, eq. 4-8).

        y_t = Σ_l λ_{t,l} S_t^{(l)} C_t + D x_t,   λ_t = softplus(Λ · W_λ x_t)
        S_t^{(l)} = Σ_{s in bucket l of t} exp(Σ_{s < r ≤ t} Δ_r A) Δ_s x_s B_sᵀ

    Bucket 0 is t itself; s is in bucket l ≥ 1 where l - 1 is the highest binary digit in which t
    and s differ. Buckets double in size with their distance, so that a sequence has log L of them
    and what is near is told apart more finely. Mamba-2 is the case of all λ alike. Parameters are
    named and shaped as in flash-linear-attention's layer.

    Args:
        d_model: width D.
        levels: buckets; those of 2^(``levels`` - 1) positions ago and older are one.
        d_state: size N of the state per channel.
        d_conv: width of the causal convolution.
        expand: the block's inner width is ``expand · d_model``.
        headdim: channels P of a head; None for 64, or the largest divisor of the inner width below
            that.
        ngroups: groups of heads that share B and C.
        chunk_size: positions computed at a time; changes speed only.
        mamba2: further hyper-parameters of ``mamba2``; None for none. Its ``backend`` is that of
            the convolution: the rest is torch's own operations.

    Raises:
        ConfigError: if ``headdim`` or ``ngroups`` does not divide, or a value is out of range.
    """

    closed_length = "it goes from chunk to chunk; export it for one length"

    def __init__(
        self,
        d_model: int,
        levels: int = 15,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int | None = None,
        ngroups: int = 1,
        chunk_size: int = 64,
        mamba2: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            d_model,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            headdim=headdim,
            ngroups=ngroups,
            chunk_size=chunk_size,
            **(mamba2 or {}),
        )
        if self.d_ssm < self.d_inner:
            raise ConfigError("log_linear_mamba2 has no MLP part: leave d_ssm out")
        if check_positive("levels", levels) < 2:
            raise ConfigError("levels must be at least 2: one for t itself and one for the rest")
        self.levels = levels
        # Rows behind Mamba-2's: λ, all levels of a head together.
        inner = self.in_proj
        self.in_proj = nn.Linear(
            d_model, inner.out_features + self.nheads * levels, bias=inner.bias is not None
        )
        self.L = nn.Parameter(torch.ones(self.nheads, levels))

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the states of buckets 1 and up (B, levels - 1, H, N, P), at least float32, the
        convolution's inputs (B, d_conv - 1, W) and how many positions there have been (B,)."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.levels - 1, self.nheads, self.d_state, self.headdim)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.conv_dim, device=device, dtype=dtype),
            "buckets": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype)),
            "seen": torch.zeros(batch, device=device, dtype=torch.long),
        }

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        resets = segment_resets(segment_ids)
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        projected = self.in_proj(x)
        if self.factors is not None:
            own = self.factors.to(projected.dtype)
            projected = projected * nn.functional.pad(own, (0, self.nheads * self.levels), value=1)
        z, mixed, dt, scales = projected.split(
            [self.d_ssm, self.conv_dim, self.nheads, self.nheads * self.levels], -1
        )
        mixed, conv = causal_conv1d(
            mixed,
            *conv_weights(self.conv1d, "conv1d"),
            state["conv"],
            resets,
            activation="silu",
            backend=convolution_backend(self.backend),
        )
        maps = self.ngroups * self.d_state
        u, k, q = mixed.split([self.d_ssm, maps, maps], -1)
        positions = positions_in_pack(resets, state["seen"], x.shape[1])
        with autocast_off(x):
            dtype = recurrent_dtype(x.dtype)
            u = u.to(dtype).unflatten(-1, (self.nheads, self.headdim))
            k, q = (t.to(dtype).unflatten(-1, (self.ngroups, self.d_state)) for t in (k, q))
            step = softplus(dt.to(dtype) + self.dt_bias.to(dtype)).clamp(*self.dt_limit)
            log_decay = -torch.exp(self.A_log.to(dtype)) * step
            if resets is not None:
                log_decay = log_decay.masked_fill(resets.unsqueeze(-1), -torch.inf)
            scales = softplus(
                self.L.to(dtype) * scales.to(dtype).unflatten(-1, (self.nheads, self.levels))
            )
            y, buckets = _log_linear(
                q,
                k,
                u * step.unsqueeze(-1),
                log_decay,
                scales,
                state["buckets"].to(dtype),
                positions,
                self.chunk_size,
            )
            skip = self.D.to(dtype).view(self.nheads, -1)
            y = (y + skip * u).to(x.dtype if self.norm is None else mixed.dtype)
        y = y.flatten(2)
        if self.norm is None:
            y = y * nn.functional.silu(z)
        after = {"conv": conv, "buckets": buckets, "seen": positions[:, -1] + 1}
        return self._finish(y, z, z, z), after

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``."""
        y, state = self(x_t.unsqueeze(1), state)
        return y.squeeze(1), state


def _log_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scales: Tensor,
    buckets: Tensor,
    positions: Tensor,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Runs log-linear attention from any place of its sequence, chunk by chunk.

    The bucket of s, seen from t, is the number of binary digits of t xor s, at most levels - 1. Of
    what lies before a chunk only its bucket m, seen from the chunk's first position p, is known:
    seen from t it is the larger of m and that of p.

    Args:
        q: queries (B, L, G, N).
        k: keys (B, L, G, N).
        v: values (B, L, H, P), H a multiple of G.
        log_decay: (B, L, H), -inf where a sequence begins.
        scales: λ (B, L, H, levels).
        buckets: before position 0 (B, levels - 1, H, N, P).
        positions: of each one in its sequence (B, L).
        chunk_size: T.

    Returns:
        The output (B, L, H, P), and the buckets as seen from the position behind the last one.
    """
    shared, outputs, levels = v.shape[2] // q.shape[2], [], scales.shape[3]
    edges = 2 ** torch.arange(levels - 1, device=q.device)
    own = torch.arange(1, levels, device=q.device)  # levels of the buckets
    for lo in range(0, v.shape[1], chunk_size):
        part = slice(lo, lo + chunk_size)
        value, decays, weights = (t[:, part].transpose(1, 2) for t in (v, log_decay, scales))
        query, key = (t[:, part].transpose(1, 2).repeat_interleave(shared, 1) for t in (q, k))
        place = positions[:, part]
        length, first, behind = place.shape[1], place[:, :1], place[:, -1:] + 1
        # λ of the level of every pair (B, H, T, T), times its decay: each sum is of its own terms.
        level = _level(place.unsqueeze(-1), place.unsqueeze(-2), edges).unsqueeze(1)
        seen = weights.gather(3, level.expand(-1, weights.shape[1], -1, -1))
        below = torch.ones(length, length, device=q.device, dtype=torch.bool).tril(-1)
        terms = decays.unsqueeze(-1).expand(-1, -1, -1, length).masked_fill(~below, 0.0)
        between = terms.cumsum(-2).exp()
        y = (query @ key.mT * (seen * between).tril()) @ value
        # What lies before the chunk, bucket by bucket (B, H, T, levels - 1).
        since = torch.maximum(_level(place, first, edges).unsqueeze(-1), own).unsqueeze(1)
        through = decays.cumsum(-1).exp()
        lent = weights.gather(3, since.expand(-1, weights.shape[1], -1, -1)) * through.unsqueeze(-1)
        y = y + torch.einsum("bhtn,bmhnp,bhtm->bhtp", query, buckets, lent)
        outputs.append(y)
        # The buckets as seen from behind the chunk.
        moved = torch.maximum(_level(behind, first, edges), own)  # (B, levels - 1)
        to = (moved.unsqueeze(-1) == own).to(v.dtype)  # from, to
        kept = torch.einsum("bm...,bmk->bk...", buckets, to)
        kept = kept * through[:, None, :, -1, None, None]
        target = (_level(place, behind, edges).unsqueeze(-1) == own).to(
            v.dtype
        )  # (B, T, levels - 1)
        left = between[:, :, -1]  # from each position to the last (B, H, T)
        rows = (target.mT.unsqueeze(2) * left.unsqueeze(1)).unsqueeze(-1) * value.unsqueeze(1)
        buckets = kept + key.mT.unsqueeze(1) @ rows
    return torch.cat(outputs, 2).transpose(1, 2), buckets


def _level(one: Tensor, other: Tensor, edges: Tensor) -> Tensor:
    """Returns the number of binary digits of one xor other, at most as many as there are edges."""
    return torch.bucketize(one ^ other, edges, right=True)
