"""Multi-scale retention (RetNet): linear attention with a fixed decay and a rotation per head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import rotate, seen_from
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.arguments import seen_by_nobody
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.chunk_walk import row_blocks
from longseq.core.ops.linear_attention import linear_attention


@register_mixer("retention")
class Retention(Mixer):
    """Multi-scale retention (arXiv 2307.08621, eq. 3-8).

        o_t = Σ_{s ≤ t} γ^{t-s} (R^t q_t)ᵀ (R^s k_s) v_s / √K,   γ_h = 1 - 2^{-5-h}
        y = W_o (RMSNorm(o) · SiLU(W_g x)),   normalised head by head

    R turns pairs of channels by fixed angles per position; with the decay γ this is the paper's
    xPos. Parameters are named and shaped as in flash-linear-attention's layer. Only differences of
    positions matter, so the state is kept as seen from the next position: it needs no position
    counter and streams without end.

    Args:
        d_model: width D.
        n_heads: number of heads H.
        expand_k: width of queries and keys over ``d_model``.
        expand_v: width of values over ``d_model``.
        rotary_base: base of the frequencies of R.
        norm_eps: added to the mean square in the norm.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``n_heads`` does not divide the key or value width, or the head's key width
            is odd.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        rotary_base: float = 10000.0,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        d_key = check_positive("expand_k · d_model", int(d_model * expand_k))
        d_value = check_positive("expand_v · d_model", int(d_model * expand_v))
        self.n_heads = n_heads
        self.d_key = check_divisible("expand_k · d_model", d_key, "n_heads", n_heads)
        self.d_value = check_divisible("expand_v · d_model", d_value, "n_heads", n_heads)
        if self.d_key % 2:
            raise ConfigError(
                f"expand_k · d_model / n_heads must be even to be rotated, got {self.d_key}"
            )
        if rotary_base <= 0:
            raise ConfigError(f"rotary_base must be above 0, got {rotary_base!r}")
        self.rotary_base = float(rotary_base)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.q_proj = nn.Linear(d_model, d_key, bias=False)
        self.k_proj = nn.Linear(d_model, d_key, bias=False)
        self.v_proj = nn.Linear(d_model, d_value, bias=False)
        self.g_proj = nn.Linear(d_model, d_value, bias=False)
        self.g_norm_swish_gate = GatedRMSNorm(self.d_value, eps=norm_eps)
        self.o_proj = nn.Linear(d_value, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the matrix state (B, H, K, V), at least float32."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.n_heads, self.d_key, self.d_value)
        return {"kv": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype))}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        batch, length, _ = x.shape
        q, k, v, gate = (
            projection(x).unflatten(-1, (self.n_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        )
        dtype = recurrent_dtype(q.dtype)
        positions = torch.arange(length, device=x.device)
        log_decay = self._log_decay(x.device, dtype)
        o, kv = linear_attention(
            rotate(q.to(dtype), positions, self.rotary_base),
            rotate(k.to(dtype), positions, self.rotary_base),
            v,
            log_decay.expand(batch, length, -1),
            initial_state=None if state is None else state["kv"],
            resets=segment_resets(segment_ids),
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        y = self.g_norm_swish_gate(o, gate).flatten(2)
        return self.o_proj(y), {"kv": seen_from(kv, length, self.rotary_base)}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``; without gradients on a CPU the state is gone over once, in the
        caches."""
        kv = state["kv"]
        own = self.backend in ("auto", "cpu") and seen_by_nobody(x_t, kv, *self.parameters())
        if not own:
            return super().step(x_t, state)
        q, k, v, gate = (
            projection(x_t).unflatten(-1, (self.n_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj, self.g_proj)
        )
        # As seen from the next position, which the new state is kept for.
        back = torch.full((1,), -1, device=x_t.device)
        q, k = (
            rotate(part.to(kv.dtype).unsqueeze(1), back, self.rotary_base).squeeze(1)
            for part in (q, k)
        )
        decay = self._log_decay(kv.device, kv.dtype).exp()
        q = q * self.d_key**-0.5
        o, kv = _turned_step(q, k, v.to(kv.dtype), kv, decay, self.rotary_base)
        y = self.g_norm_swish_gate(o.to(v.dtype), gate).flatten(1)
        return self.o_proj(y), {"kv": kv}

    def _log_decay(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Returns log γ (H,)."""
        heads = torch.arange(self.n_heads, device=device, dtype=dtype)
        return torch.log1p(-torch.exp2(-5.0 - heads))


def _turned_step(
    q: Tensor, k: Tensor, v: Tensor, memory: Tensor, decay: Tensor, base: float
) -> tuple[Tensor, Tensor]:
    """Takes one step of a memory whose keys are turned back by one position: γ R⁻¹ S + k vᵀ.

    A few rows of the batch at a time: the passes over their memory then find it in the caches.

    Args:
        q: (B, H, K), scaled, as seen from the next position.
        k: (B, H, K), as seen from the next position.
        v: (B, H, V).
        memory: S (B, H, K, V), as seen from this position.
        decay: γ (H,).
        base: see ``rotate``.

    Returns:
        o (B, H, V) and the new memory.
    """
    half = memory.shape[2] // 2
    unit = torch.ones(1, 1, 1, 2 * half, device=q.device, dtype=q.dtype)
    unit[..., half:] = 0.0
    turned = rotate(unit, torch.ones(1, device=q.device, dtype=torch.long), base)
    along, across = (part[0, 0, 0, :, None] for part in turned.split(half, -1))  # cos, sin
    scaled = decay[:, None, None]
    along, across = (scaled * along).repeat(1, 2, 1), scaled * across
    after, o = torch.empty_like(memory), torch.empty_like(v)
    for rows in row_blocks(memory.shape[0], memory[0].numel()):
        was, now = memory[rows], torch.mul(memory[rows], along, out=after[rows])
        now[:, :, :half].addcmul_(was[:, :, half:], across)
        now[:, :, half:].addcmul_(was[:, :, :half], across, value=-1)
        now.addcmul_(k[rows].unsqueeze(-1), v[rows].unsqueeze(-2))
        torch.matmul(q[rows].unsqueeze(-2), now, out=o[rows].unsqueeze(-2))
    return o, after
