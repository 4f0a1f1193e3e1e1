"""The companion-matrix state-space model of SpaceTime, open loop and closed loop."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, register_mixer, segment_resets
from longseq.core.ops.lti import lti_scan
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.s4_kernel import wide

KernelInit = Literal["normal", "xavier"]
_SMALLEST_NORM = 1e-4


@register_mixer("companion")
class Companion(Mixer):
    """State-space model with a companion matrix (SpaceTime, arXiv 2303.09489).

    n_kernels systems with M real state dimensions, each serving D / n_kernels neighbouring
    channels:

        x_t = A x_{t-1} + b u_t,    y_t = c · x_t + skip · u_t,    A = [e_2 … e_M a],

    A shifts the state by one place and adds its last entry times a, so one system is any
    autoregressive model of order M. a is divided by its norm: with the 1-norm the powers of A stay
    bounded.

    With ``closed_loop`` there is a further vector k that predicts the next input from the state, û
    = k · x, and ``rollout`` forecasts without inputs: x_{t+1} = (A + b k*) x_t. The state is "ssm":
    (B, D, M).

    Args:
        d_model: width D.
        d_state: M.
        n_kernels: number of systems, a divisor of d_model; one per channel if None.
        norm_order: order of the norm of a (and of b, c and k, if ``closed_loop``) that is divided
            out; 0 for none.
        kernel_init: "normal", or "xavier" for uniform within ±1/√M.
        skip_connection: whether ``skip`` is used.
        closed_loop: whether k exists; such a model has no skip connection.
        chunk_size: longest chunk of the scan; a matter of speed.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    a: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter
    k: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        n_kernels: int | None = None,
        norm_order: int = 1,
        kernel_init: KernelInit = "normal",
        skip_connection: bool = True,
        closed_loop: bool = False,
        chunk_size: int = 64,
    ) -> None:
        super().__init__(d_model)
        self.d_state = check_positive("d_state", d_state)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        self.n_kernels = d_model if n_kernels is None else n_kernels
        check_divisible("d_model", d_model, "n_kernels", self.n_kernels)
        check_choice("kernel_init", kernel_init, KernelInit)
        if not isinstance(norm_order, int) or norm_order < 0:
            raise ConfigError(f"norm_order must be an integer of at least 0, got {norm_order!r}")
        self.norm_order, self.closed_loop = norm_order, closed_loop
        self.skip_connection = skip_connection and not closed_loop
        # Published checkpoints hold ``skip`` whether it is used or not.
        self.skip = nn.Parameter(torch.randn(d_model))
        for name in ("a", "b", "c", "k") if closed_loop else ("a", "b", "c"):
            draw = torch.randn(self.n_kernels, d_state)
            if kernel_init == "xavier":
                draw = (2 * torch.rand(self.n_kernels, d_state) - 1) / d_state**0.5
            self.register_parameter(name, nn.Parameter(draw))

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns A (G, M, M), b and c (G, M) of the G = n_kernels systems, in float64."""
        a, b, c = self._normalised(self.a), wide(self.b), wide(self.c)
        if self.closed_loop:
            b, c = self._normalised(self.b), self._normalised(self.c)
        shift = torch.diag(torch.ones(self.d_state - 1, dtype=a.dtype, device=a.device), -1)
        last = torch.zeros(self.d_state, dtype=a.dtype, device=a.device)
        last[-1] = 1
        return shift + a.unsqueeze(-1) * last, b, c

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        u = x.to(recurrent_dtype(x.dtype))
        with autocast_off(u):
            a, b, c = self.system()
            before = None if state is None else state["ssm"]
            y, last = lti_scan(u, a, b, c, before, segment_resets(segment_ids), self.chunk_size)
        return self._with_skip(y, u).to(x.dtype), {"ssm": last}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        u = x_t.to(recurrent_dtype(x_t.dtype))
        a, b, c = (self._spread(wide(t).to(state["ssm"].dtype)) for t in self._vectors())
        before = state["ssm"]
        shifted = torch.nn.functional.pad(before[..., :-1], (1, 0))
        last = shifted + before[..., -1:] * a + b * u.unsqueeze(-1)
        return self._with_skip((c * last).sum(-1), u).to(x_t.dtype), {"ssm": last}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        shape = (batch, self.d_model, self.d_state)
        return {"ssm": torch.zeros(shape, dtype=recurrent_dtype(dtype), device=device)}

    def rollout(self, state: State, horizon: int) -> tuple[Tensor, Tensor]:
        """Forecasts without inputs: x_{h+1} = (A + b k*) x_h from the state after the lag.

        As in the published code, the inputs of the lag enter by b before its normalisation, and û
        is read by k before its normalisation, while the loop is closed by the normalised vectors.

        Args:
            state: from ``forward`` or ``step``.
            horizon: number of positions.

        Returns:
            Outputs c · x_h and predicted inputs k · x_h, (B, horizon, D) each, h = 0 … horizon - 1.

        Raises:
            ConfigError: if the mixer was made without ``closed_loop``, or for a horizon below 1.
        """
        if not self.closed_loop:
            raise ConfigError("rollout needs a mixer made with closed_loop=True")
        check_positive("horizon", horizon)
        x = wide(state["ssm"]).unflatten(1, (self.n_kernels, -1))
        if self.norm_order > 0:
            x = x * self._norm(self.b).unsqueeze(1)
        a, b, c = self.system()
        square = a + b.unsqueeze(-1) * self._normalised(self.k).unsqueeze(-2)
        # Rows c (A + b k*)^h and k (A + b k*)^h by doubling.
        rows = torch.stack([c, wide(self.k)], 1).unsqueeze(1)  # (G, h, 2, M)
        while rows.shape[1] < horizon:
            rows = torch.cat([rows, rows[:, : horizon - rows.shape[1]] @ square.unsqueeze(1)], 1)
            square = square @ square
        y = torch.einsum("ghvm,bgrm->vbhgr", rows, x).flatten(3).to(state["ssm"].dtype)
        return y[0], y[1]

    def _vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        a = self._normalised(self.a)
        if self.closed_loop:
            return a, self._normalised(self.b), self._normalised(self.c)
        return a, self.b, self.c

    def _norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(wide(x), self.norm_order, dim=-1, keepdim=True).clamp(
            min=_SMALLEST_NORM
        )

    def _normalised(self, x: Tensor) -> Tensor:
        return wide(x) / self._norm(x) if self.norm_order > 0 else wide(x)

    def _spread(self, x: Tensor) -> Tensor:
        """Returns (D, M) for the vectors (G, M) of the systems."""
        return x.repeat_interleave(self.d_model // self.n_kernels, dim=0)

    def _with_skip(self, y: Tensor, u: Tensor) -> Tensor:
        return y + u * self.skip.to(u.dtype) if self.skip_connection else y
