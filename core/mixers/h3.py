"""H3: a shift SSM and a diagonal SSM between multiplicative projections, with states of fixed
size."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.exported import is_open
from longseq.core.ops.fft_conv import carry_history, fft_conv, work_dtype
from longseq.core.ops.lti import lti_scan
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.s4_kernel import Discretisation, as_complex, discretise, wide

_MEASURES = ("diag-lin", "diag-inv")
_DISCRETISATIONS = ("bilinear", "zoh")


class _ShiftSSM(nn.Module):
    """A state that shifts by one at a time: a convolution with taps ``k[j] = Σ_m B[m]·C[m +
    j]``."""

    def __init__(self, d_model: int, d_state: int) -> None:
        super().__init__()
        first = torch.zeros(d_model, d_state)
        first[:, 0] = 1.0
        self.B = nn.Parameter(first)
        bound = 1 / math.sqrt(d_state)  # as a convolution of that many taps
        self.C = nn.Parameter(torch.empty(1, d_model, d_state).uniform_(-bound, bound))

    def forward(self) -> Tensor:
        """Returns the taps (d_model, d_state)."""
        dtype, n = work_dtype(self.B), 2 * self.B.shape[-1]
        b, c = torch.fft.rfft(self.B.to(dtype), n=n), torch.fft.rfft(self.C[0].to(dtype), n=n)
        return torch.fft.irfft(b.conj() * c, n=n)[:, : n // 2]


class _DiagonalSSM(nn.Module):
    """S4D: log_dt (H), inv_A_real and A_imag (n_ssm, N/2), B (n_ssm, N/2, 2), C (1, H, N/2, 2)."""

    def __init__(
        self,
        heads: int,
        d_state: int,
        n_ssm: int,
        measure: str,
        disc: Discretisation,
        dt_min: float,
        dt_max: float,
    ) -> None:
        super().__init__()
        modes = d_state // 2
        self.copies, self.disc = heads // n_ssm, disc
        low, high = math.log(dt_min), math.log(dt_max)
        n = torch.arange(modes, dtype=torch.float32)
        frequency = (
            math.pi * n
            if measure == "diag-lin"
            else d_state / math.pi * (d_state / (1 + 2 * n) - 1)
        )
        b = torch.zeros(n_ssm, modes, 2)
        b[..., 0] = 1.0
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(heads))
        self.inv_A_real = nn.Parameter(torch.full((n_ssm, modes), math.log(0.5)))
        self.A_imag = nn.Parameter(frequency.expand(n_ssm, modes).clone())
        self.B = nn.Parameter(b)
        self.C = nn.Parameter(torch.randn(1, heads, modes, 2) * math.sqrt(0.5))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns transitions, input and output weights, complex (H, N/2), in float64 for long
        powers."""
        dt = torch.exp(wide(self.log_dt)).unsqueeze(-1)
        a = torch.complex(-torch.exp(wide(self.inv_A_real)), wide(self.A_imag)).repeat(
            self.copies, 1
        )
        transition, scale = discretise(a, dt, self.disc)
        b = as_complex(self.B).repeat(self.copies, 1) * scale
        # The other of each conjugate pair is as large.
        return (transition, b, 2 * as_complex(self.C)[0])


def _joined(kv: Tensor) -> Tensor:
    """(B, P, P, L, H) to (B·P·P, L, H)."""
    if not is_open(kv.shape[3]):
        return kv.flatten(0, 2)
    # Not every torch joins dimensions whose strides depend on an open length.
    return kv.permute(3, 0, 1, 2, 4).contiguous().flatten(1, 3).transpose(0, 1)


@register_mixer("h3")
class H3(Mixer):
    """Hungry Hungry Hippos, arXiv 2212.14052.

    ``y = out(q ⊙ SSM_diag(SSM_shift(k) ⊗ v))`` in each head, with direct connections in both SSMs.
    The shift SSM is a convolution with d_state taps, the diagonal one a linear recurrence with
    d_state/2 complex modes; both states have a fixed size.

    Args:
        d_model: width D.
        d_state: N, taps of the shift SSM and (in conjugate pairs) modes of the diagonal one; even.
        head_dim: keys and values in a head; the outer product holds head_dim² recurrences per head.
        n_ssm: independent copies of A and B; one per head if None.
        measure: initial frequencies: ``diag-lin`` or ``diag-inv`` (S4D).
        disc: discretisation: ``bilinear`` or ``zoh``.
        dt_min: least initial step.
        dt_max: greatest initial step.

    Raises:
        ConfigError: for a wrong size or an unknown choice.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = (
        "ssm_k_kernel.kernel.B",
        "kernel.kernel.log_dt",
        "kernel.kernel.inv_A_real",
        "kernel.kernel.A_imag",
        "kernel.kernel.B",
    )

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        head_dim: int = 1,
        n_ssm: int | None = None,
        measure: Literal["diag-lin", "diag-inv"] = "diag-lin",
        disc: Discretisation = "bilinear",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
    ) -> None:
        super().__init__(d_model)
        check_divisible(
            "d_state", check_positive("d_state", d_state), "the number of a conjugate pair", 2
        )
        self.d_state, self.head_dim = d_state, head_dim
        self.heads = check_divisible("d_model", d_model, "head_dim", head_dim)
        copies = self.heads if n_ssm is None else n_ssm
        check_divisible("the number of heads", self.heads, "n_ssm", copies)
        for name, value, known in (
            ("measure", measure, _MEASURES),
            ("disc", disc, _DISCRETISATIONS),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is unknown; {did_you_mean(value, known)}")
        if not 0 < dt_min <= dt_max:
            raise ConfigError(
                f"dt_min must be above 0 and at most dt_max ({dt_max!r}), got {dt_min!r}"
            )
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        # The published layout keeps each SSM's parameters under a wrapper's ``kernel``.
        self.ssm_k_kernel = nn.ModuleDict({"kernel": _ShiftSSM(d_model, d_state)})
        self.ssm_k_D = nn.Parameter(torch.randn(d_model))
        self.kernel = nn.ModuleDict(
            {"kernel": _DiagonalSSM(self.heads, d_state, copies, measure, disc, dt_min, dt_max)}
        )
        self.D = nn.Parameter(torch.randn(self.heads))
        self.output_linear = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        pairs, per_head = self.head_dim**2, (batch, length, self.heads, self.head_dim)
        recent = None if state is None else state["conv_state"]
        start = None if state is None else state["ssm_state"].flatten(0, 1)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        dtype = work_dtype(k)
        shifted = fft_conv(
            k.to(dtype), self.ssm_k_kernel["kernel"](), self.ssm_k_D, recent, segment_ids
        )
        keys, values = shifted.view(per_head), v.to(dtype).view(per_head)
        # (B, keys, values, L, H): every pair is a sequence of its own, with its head's recurrence
        kv = keys.permute(0, 3, 1, 2).unsqueeze(2) * values.permute(0, 3, 1, 2).unsqueeze(1)
        resets = segment_resets(segment_ids)
        resets = None if resets is None else resets.repeat_interleave(pairs, 0)
        with autocast_off(x):
            transition, b, c = self.kernel["kernel"]()
        y, last = lti_scan(_joined(kv), transition, b, c, start, resets)
        y = y.view_as(kv) + self.D.to(dtype) * kv
        y = (y * q.to(dtype).view(per_head).permute(0, 3, 1, 2).unsqueeze(2)).sum(1)
        out = self.output_linear(y.permute(0, 2, 1, 3).reshape(batch, length, -1).to(x.dtype))
        after = {
            "conv_state": carry_history(k, recent, self.d_state - 1, segment_ids, fixed=True),
            "ssm_state": last.unflatten(0, (batch, pairs)),
        }
        return out, after

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        wide = torch.complex128 if recurrent_dtype(dtype) == torch.float64 else torch.complex64
        shape = (batch, self.head_dim**2, self.heads, self.d_state // 2)
        return {
            "conv_state": torch.zeros(
                batch, self.d_state - 1, self.d_model, device=device, dtype=dtype
            ),
            "ssm_state": torch.zeros(shape, device=device, dtype=wide),
        }
