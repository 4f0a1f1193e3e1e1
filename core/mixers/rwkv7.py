"""RWKV-7: a matrix state that removes what a key finds and adds what replaces it, channel by
channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, normalize

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._submodules import holding
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.backends import Backend, check_backend
from longseq.core.ops.dplr import dplr
from longseq.core.ops.precision import bounded

_STRONGEST = (
    0.6065306597126334  # exp(-1/2): a channel keeps at least exp(-exp(-1/2)) of itself per position
)


class LowRank(nn.Module):
    """``W_2 f(W_1 x) + b``: a map of low rank, zero but for its bias when it is new.

    Args:
        d_in: width of x.
        d_out: width of the result.
        rank: width between the two.
        activation: f.
        bias: b's initial value; None for no bias.
    """

    def __init__(
        self, d_in: int, d_out: int, rank: int, activation: nn.Module, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.lora = nn.Sequential(
            nn.Linear(d_in, rank, bias=False),
            activation,
            nn.Linear(rank, d_out, bias=bias is not None),
        )
        first, last = self.lora[0], self.lora[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        with torch.no_grad():
            first.weight.zero_()
            nn.init.orthogonal_(last.weight, gain=0.1 * max(1.0, rank / d_out) ** 0.5)
            if bias is not None:
                last.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        y: Tensor = self.lora(x)
        return y


@register_mixer("rwkv7")
class RWKV7(Mixer):
    """RWKV-7's time mixing (arXiv 2503.14456, section 3 and figure 1).

        x^□_t = x_t + μ_□ (x_{t-1} - x_t)   for □ of r, w, k, v, a, g
        w_t = exp(-e^{-1/2} σ(W(x^w))),   η_t = σ(A(x^a)),   κ_t = κ ∘ k_t over its norm, head by
        head k̃_t = k_t ∘ (1 + (η_t - 1) ∘ α)
        S_t = (diag(w_t) - (κ_t ∘ η_t) κ_tᵀ) S_{t-1} + k̃_t v_tᵀ,   o_t = S_tᵀ r_t
        y = W_o ((GroupNorm(o) + (r_tᵀ (ρ ∘ k̃_t)) v_t) ∘ G(x^g))

    W, A and G are maps of low rank. It is the layer as the published model's first one: later ones
    there mix their values with the first layer's, which one layer alone does not have.

    Parameters are named and shaped as in flash-linear-attention's layer of index 0.

    Args:
        d_model: width D.
        head_dim: channels K of a head; None for 64, or the largest divisor of ``d_model`` below
            that.
        decay_low_rank_dim: rank of W; None for a multiple of 32 near 2.5 √D K / 64, as of A.
        a_low_rank_dim: rank of A.
        gate_low_rank_dim: rank of G; None for a multiple of 32 near 5 √D.
        norm_eps: added to the variance in the norm, times K.
        chunk_size: positions per chunk of the operator; changes speed only.
        backend: of the operator; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if ``head_dim`` does not divide ``d_model``, is 1, or a value is out of range.
    """

    ssm_parameters = ("k_k", "k_a", "r_k")

    def __init__(
        self,
        d_model: int,
        head_dim: int | None = None,
        decay_low_rank_dim: int | None = None,
        a_low_rank_dim: int | None = None,
        gate_low_rank_dim: int | None = None,
        norm_eps: float = 1e-5,
        chunk_size: int = 64,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(d_model)
        if head_dim is None:
            head_dim = max(p for p in range(1, 65) if d_model % p == 0)
        if head_dim == 1:
            raise ConfigError(
                "rwkv7 normalises head by head, and one channel less its mean is nothing: "
                f"head_dim must be at least 2 (without one, d_model {d_model} needs a divisor from "
                "2 to 64)"
            )
        self.n_heads = check_divisible("d_model", d_model, "head_dim", head_dim)
        self.head_dim, self.norm_eps = head_dim, norm_eps
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.backend = check_backend(backend)

        # Channels from 0 to 1, and inside each head from -1 to 1, bent towards its middle.
        place = torch.arange(d_model) / d_model
        across = torch.arange(d_model) / max(d_model - 1, 1)
        within = 2 * (torch.arange(d_model) % head_dim) / max(head_dim - 1, 1) - 1
        within = within * within.abs()
        for name, power in (("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)):
            setattr(self, f"x_{name}", nn.Parameter((1 - place**power).view(1, 1, -1)))
        self.k_k = nn.Parameter(0.71 - 0.1 * (across - 0.5))
        self.k_a = nn.Parameter(torch.full((d_model,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.n_heads, head_dim), -0.04))
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )
        for projection, gain in ((self.r_proj, 1.0), (self.k_proj, 0.1), (self.v_proj, 1.0)):
            nn.init.orthogonal_(projection.weight, gain=gain)

        def rank(given: int | None, factor: float, name: str) -> int:
            if given is None:
                return max(32, round(factor * d_model**0.5 / 32) * 32)
            return check_positive(name, given)

        small = 2.5 * head_dim / 64
        self.w_lora = LowRank(
            d_model,
            d_model,
            rank(decay_low_rank_dim, small, "decay_low_rank_dim"),
            nn.Tanh(),
            -5.5 + 6 * across + 2.5 * within,
        )
        self.a_lora = LowRank(
            d_model,
            d_model,
            rank(a_low_rank_dim, small, "a_low_rank_dim"),
            nn.Identity(),
            -0.19 + 0.3 * within + 0.4 * (across - 0.5),
        )
        self.g_lora = LowRank(
            d_model, d_model, rank(gate_low_rank_dim, 5.0, "gate_low_rank_dim"), nn.Sigmoid()
        )
        self.g_norm = nn.GroupNorm(self.n_heads, d_model, eps=head_dim * norm_eps)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the matrix state (B, H, K, K), at least float32, and the last input (B, D)."""
        device, dtype = self._where(device, dtype)
        shape = (batch, self.n_heads, self.head_dim, self.head_dim)
        return {
            "shift": torch.zeros(batch, self.d_model, device=device, dtype=dtype),
            "kv": torch.zeros(shape, device=device, dtype=recurrent_dtype(dtype)),
        }

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        last = torch.zeros_like(x[:, 0]) if state is None else state["shift"].to(x.dtype)
        earlier = torch.cat([last.unsqueeze(1), x[:, :-1]], 1)
        if resets is not None:
            earlier = earlier.masked_fill(resets.unsqueeze(-1), 0.0)
        mixed = {
            name: torch.lerp(x, earlier, getattr(self, f"x_{name}").to(x.dtype))
            for name in "rwkvag"
        }
        r, k, v = self.r_proj(mixed["r"]), self.k_proj(mixed["k"]), self.v_proj(mixed["v"])
        strength = self.w_lora(mixed["w"])
        log_decay = -_STRONGEST * strength.to(recurrent_dtype(strength.dtype)).sigmoid()
        rate = self.a_lora(mixed["a"]).sigmoid()
        heads = (self.n_heads, self.head_dim)
        found = normalize(bounded((k * self.k_k.to(k.dtype)).unflatten(-1, heads)), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a.to(k.dtype))
        r, k, v, rate, log_decay = (t.unflatten(-1, heads) for t in (r, k, v, rate, log_decay))
        o, kv = dplr(
            r,
            k,
            v,
            found * rate,
            -found,
            log_decay,
            scale=1.0,
            initial_state=None if state is None else state["kv"],
            resets=resets,
            chunk_size=self.chunk_size,
            backend=self.backend,
        )
        wide = recurrent_dtype(o.dtype)
        norm = holding(self.g_norm, nn.GroupNorm, "g_norm")
        normed = group_norm(
            bounded(o.to(wide)).flatten(0, 1).flatten(1),
            self.n_heads,
            norm.weight.to(wide),
            norm.bias.to(wide),
            norm.eps,
        ).view(*o.shape)
        own = (r * k * self.r_k.to(r.dtype)).sum(-1, keepdim=True) * v
        y = (normed.to(own.dtype) + own).flatten(2) * self.g_lora(mixed["g"])
        return self.o_proj(y), {"shift": x[:, -1].clone(), "kv": kv}
