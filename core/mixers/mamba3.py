"""Mamba-3: trapezoidal discretisation, a rotating state, and several inputs and outputs per
head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._delta import normalised
from longseq.core.mixers._gated_norm import GatedRMSNorm
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_scan import linear_scan


@register_mixer("mamba3")
class Mamba3(Mixer):
    """Mamba-3 (Lahoti et al., ICLR 2026, "Improved sequence modeling using state space
    principles").

        dt = softplus(W_dt x + b),  A = -max(softplus(W_A x), A_floor),  λ = σ(W_λ x)
        θ_t = θ_{t-1} + π dt_t tanh(W_θ x_t)        q, k = R(θ) (RMSNorm(W x) + bias)
        S_t = e^{A dt} (S_{t-1} + (1 - λ_t) dt_t k_{t-1} v_{t-1}ᵀ) + λ_t dt_t k_t v_tᵀ
        y_t = (S_tᵀ q_t + D v_t) · SiLU(z_t)

    The trapezoidal rule weighs both ends of a step by the data-dependent λ. R turns pairs of the
    state's dimensions by angles of the data, which is a complex transition written in real numbers:
    parity and other periodic patterns need it. With ``mimo_rank`` R above 1 a head has R keys,
    values (scaled copies of one) and queries, whose outputs are summed.

    The recurrence is linear attention with keys scaled by λ_t dt_t + (1 - λ_{t+1}) dt_{t+1}, less
    what a position's own pair would get too early; so it runs by that operator's kernels.
    Parameters are named and shaped as in mamba-ssm.

    Args:
        d_model: width D.
        d_state: rows N of a head's state.
        expand: width of the values over ``d_model``.
        headdim: columns P of a head's state; None for the largest divisor up to 64.
        ngroups: groups of heads that share a key and a query.
        rope_fraction: part of the N dimensions that turn, 0.5 or 1.
        dt_min: smallest initial step.
        dt_max: largest initial step.
        dt_init_floor: least initial step.
        A_floor: least decay rate.
        mimo_rank: inputs and outputs R per head; 1 for the plain form.
        out_norm: whether the output is normalised head by head before the gate.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if widths do not divide or a value is out of range.
    """

    ssm_parameters = ("dt_bias", "D")

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        expand: float = 2,
        headdim: int | None = None,
        ngroups: int = 1,
        rope_fraction: float = 0.5,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        A_floor: float = 1e-4,
        mimo_rank: int = 1,
        out_norm: bool = False,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        self.d_state = check_positive("d_state", d_state)
        self.d_inner = check_positive("expand · d_model", int(expand * d_model))
        if headdim is None:
            headdim = max(p for p in range(1, 65) if self.d_inner % p == 0)
        self.nheads = check_divisible("expand · d_model", self.d_inner, "headdim", headdim)
        check_divisible("number of heads", self.nheads, "ngroups", ngroups)
        if rope_fraction not in (0.5, 1.0):
            raise ConfigError(f"rope_fraction must be 0.5 or 1, got {rope_fraction!r}")
        self.angles = int(d_state * rope_fraction) // 2
        if self.angles < 1 or d_state % 2:
            raise ConfigError(f"d_state must be even and turn at least one pair, got {d_state}")
        if not 0 < dt_min <= dt_max:
            raise ConfigError(
                f"dt_min must be positive and at most dt_max, got {dt_min!r} and {dt_max!r}"
            )
        if not 0 <= A_floor < math.inf:
            raise ConfigError(f"A_floor must be at least 0, got {A_floor!r}")
        self.headdim, self.ngroups, self.A_floor = headdim, ngroups, float(A_floor)
        self.mimo_rank = check_positive("mimo_rank", mimo_rank)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)
        self.maps = d_state * ngroups * self.mimo_rank
        # Rows of in_proj: z, x, B, C, dt, A, λ, θ.
        rows = 2 * self.d_inner + 2 * self.maps + 3 * self.nheads + self.angles
        self.in_proj = nn.Linear(d_model, rows, bias=False)
        dt = torch.exp(torch.rand(self.nheads) * math.log(dt_max / dt_min) + math.log(dt_min))
        dt = dt.clamp_min(dt_init_floor)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.B_bias = nn.Parameter(torch.ones(self.nheads, self.mimo_rank, d_state))
        self.C_bias = nn.Parameter(torch.ones(self.nheads, self.mimo_rank, d_state))
        self.B_norm = nn.RMSNorm(d_state, eps=1e-5)
        self.C_norm = nn.RMSNorm(d_state, eps=1e-5)
        if self.mimo_rank > 1:
            shape = (self.nheads, self.mimo_rank, headdim)
            self.mimo_x = nn.Parameter(torch.full(shape, 1 / self.mimo_rank))
            self.mimo_z = nn.Parameter(torch.ones(shape))
            self.mimo_o = nn.Parameter(torch.full(shape, 1 / self.mimo_rank))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, self.nheads) if out_norm else None
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns S (B, H, N, P), θ (B, H, pairs), and the last turned key (B, R, H, N) and value
        (B, H, P), all at least float32."""
        device, dtype = self._where(device, dtype)
        heads, rank, dtype = self.nheads, self.mimo_rank, recurrent_dtype(dtype)
        shapes = {
            "kv": (heads, self.d_state, self.headdim),
            "angle": (heads, self.angles),
            "k": (rank, heads, self.d_state),
            "v": (heads, self.headdim),
        }
        return {
            name: torch.zeros(batch, *shape, device=device, dtype=dtype)
            for name, shape in shapes.items()
        }

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        heads, rank = self.nheads, self.mimo_rank
        resets = segment_resets(segment_ids)
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        working = recurrent_dtype(x.dtype)
        z, value, k, q, dt, rate, share, turn = self.in_proj(x).split(
            [self.d_inner, self.d_inner, self.maps, self.maps, heads, heads, heads, self.angles], -1
        )
        dt = softplus(dt.to(working) + self.dt_bias)
        log_decay = -softplus(rate.to(working)).clamp_min(self.A_floor) * dt
        share = share.to(working).sigmoid()
        angle = self._angles(turn.to(working), dt, state["angle"], resets)
        k = self._turned(
            normalised(
                k.unflatten(-1, (rank, -1, self.d_state)).to(working), self.B_norm, "B_norm"
            ),
            self.B_bias,
            angle,
        )
        q = self._turned(
            normalised(
                q.unflatten(-1, (rank, -1, self.d_state)).to(working), self.C_norm, "C_norm"
            ),
            self.C_bias,
            angle,
        )
        value = value.unflatten(-1, (heads, self.headdim))
        now, early = share * dt, (1 - share) * dt
        # What a pair gets from the step after it: nothing where a new sequence begins.
        later = early[:, 1:]
        if resets is not None:
            later = torch.where(resets[:, 1:, None], 0.0, later)
        later = pad(later, (0, 0, 0, 1))
        y, kv = self._attend(q, k, value, now, later, log_decay, early[:, 0], state, resets)
        out = self._gated(y, z.unflatten(-1, (heads, self.headdim)))
        after = {"kv": kv, "angle": angle[:, -1], "k": k[:, -1], "v": value[:, -1].to(working)}
        return self.out_proj(out.flatten(2).to(x.dtype)), after

    def _angles(self, turn: Tensor, dt: Tensor, first: Tensor, resets: Tensor | None) -> Tensor:
        """Returns θ (B, L, H, pairs) in [0, 2π), summed in float64: a long sum of float32 drifts.

        Args:
            turn: what is squashed to half turns per unit of time (B, L, pairs).
            dt: (B, L, H).
            first: θ before position 0 (B, H, pairs).
            resets: bool (B, L) or None.
        """
        exact = torch.float32 if turn.device.type == "mps" else torch.float64
        steps = math.pi * (turn.tanh().unsqueeze(2) * dt.unsqueeze(-1)).to(exact)
        keep = torch.ones((), device=turn.device, dtype=exact).expand(steps.shape[:2])
        keep = keep if resets is None else (~resets).to(exact)
        total, _ = linear_scan(keep[..., None, None].expand_as(steps), steps, first.to(exact))
        return total.remainder(2 * math.pi).to(dt.dtype)

    def _turned(self, x: Tensor, bias: Tensor, angle: Tensor) -> Tensor:
        """Returns keys or queries of all heads (B, L, R, H, N), turned.

        Args:
            x: normalised (B, L, R, groups, N).
            bias: (H, R, N).
            angle: (B, L, H, pairs).
        """
        x = x.repeat_interleave(self.nheads // self.ngroups, -2).to(angle.dtype)
        x = x + bias.transpose(0, 1)
        cos, sin = angle.cos().unsqueeze(2), angle.sin().unsqueeze(2)
        if self.mimo_rank == 1:  # neighbours are a pair
            part, rest = x[..., : 2 * self.angles], x[..., 2 * self.angles :]
            a, b = part.unflatten(-1, (-1, 2)).unbind(-1)
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
            return torch.cat([turned, rest], -1)
        a, b = x.chunk(2, -1)  # dimensions half of N apart are a pair
        fixed = a.shape[-1] - self.angles
        cos, sin = pad(cos, (0, fixed), value=1.0), pad(sin, (0, fixed))
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def _values(self, value: Tensor) -> Tensor:
        """Returns the values of every input of the heads (B, L, R, H, P) of (B, L, H, P)."""
        if self.mimo_rank == 1:
            return value.unsqueeze(2)
        return value.unsqueeze(2) * self.mimo_x.transpose(0, 1)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        value: Tensor,
        now: Tensor,
        later: Tensor,
        log_decay: Tensor,
        early: Tensor,
        state: State,
        resets: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Returns S_tᵀ q_t + D v_t (B, L, R, H, P) and the last S.

        Args:
            q: queries (B, L, R, H, N).
            k: keys (B, L, R, H, N).
            value: (B, L, H, P).
            now: λ_t dt_t (B, L, H).
            later: (1 - λ_{t+1}) dt_{t+1}, 0 at the end of a sequence (B, L, H).
            log_decay: A dt (B, L, H).
            early: (1 - λ_0) dt_0 (B, H).
            state: before position 0.
            resets: bool (B, L) or None.
        """
        rank, values = self.mimo_rank, self._values(value).to(now.dtype)
        before = self._values(state["v"].unsqueeze(1).to(now.dtype)).squeeze(1)
        pair = torch.einsum("brhn,brhp->bhnp", state["k"].to(now.dtype), before)
        first = state["kv"] + early[..., None, None] * pair
        whole = (now + later)[:, :, None, :, None]
        spread = pad(log_decay.unsqueeze(2), (0, 0, 0, rank - 1)).flatten(1, 2)
        if resets is not None and rank > 1:
            resets = pad(resets.unsqueeze(2), (0, rank - 1)).flatten(1, 2)
        y, kv = linear_attention(
            q.flatten(1, 2),
            (k * whole).flatten(1, 2),
            values.flatten(1, 2),
            spread,
            1.0,
            first,
            resets,
            self.chunk_size,
            backend=self.backend,
        )
        # A position's own keys count by λ dt; above those up to the query's own had the whole.
        own = torch.ones(rank, rank, device=q.device, dtype=now.dtype).tril()
        weight = now[..., None, None] - (now + later)[..., None, None] * own  # (B, L, H, R, R)
        scores = torch.einsum("blrhn,blshn->blhrs", q, k) * weight
        y = y.unflatten(1, (-1, rank)) + torch.einsum("blhrs,blshp->blrhp", scores, values)
        return y + self.D[:, None] * values, kv

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        """Returns the gated outputs of all ranks, summed (B, L, H, P).

        Args:
            y: (B, L, R, H, P).
            z: gate (B, L, H, P).
        """
        gate = z.unsqueeze(2).to(y.dtype)
        if self.mimo_rank > 1:
            gate = gate * self.mimo_z.transpose(0, 1)
        if self.norm is None:
            y = y * silu(gate)
        else:
            pairs = zip(y.flatten(3).unbind(2), gate.flatten(3).unbind(2))
            normed = torch.stack([self.norm(*pair) for pair in pairs], 2)
            y = normed.unflatten(-1, (self.nheads, -1))
        return (y * self.mimo_o.transpose(0, 1)).sum(2) if self.mimo_rank > 1 else y.squeeze(2)
