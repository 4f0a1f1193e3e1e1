"""The layer round a time-invariant state-space model, shared by S4, S4D and DSS; no mixer
itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._linear import LinearGLU
from longseq.core.mixers.base import Mixer, State, recurrent_dtype, segment_resets
from longseq.core.ops.lti import lti_scan
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.s4_kernel import vandermonde_kernel

Activation = Literal["gelu", "relu", "silu", "none"]
Output = Literal["glu", "linear", "none"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "none": nn.Identity,
}


class SSMLayer(Mixer):
    """One state-space model per channel, skip connection, activation, dropout, and a position-wise
    output map.

    y = out(dropout(act(SSM(x) + D · x))), with out(h) = h₁ · σ(h₂), [h₁, h₂] = W h + β for "glu".

    The state is "ssm": complex (B, D, N) for N complex state dimensions.

    Args:
        d_model: width D.
        n_complex: N.
        activation: after the skip connection.
        output: "glu" and "linear" mix channels; "none" leaves that to the block round the mixer.
        dropout: probability, after the activation.
        chunk_size: longest chunk of the scan.
    """

    def __init__(
        self,
        d_model: int,
        n_complex: int,
        activation: str,
        output: str,
        dropout: float,
        chunk_size: int,
    ) -> None:
        super().__init__(d_model)
        self.chunk_size = check_positive("chunk_size", chunk_size)
        check_choice("activation", activation, Activation)
        check_choice("output", output, Output)
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {dropout!r}")
        self.n_complex = check_positive("n_complex", n_complex)
        self.activation = _ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        # The published layers keep the linear map as the first item of a sequence.
        self.output_linear = nn.Sequential()
        if output == "glu":
            self.output_linear = LinearGLU(d_model, d_model)
        elif output == "linear":
            self.output_linear = nn.Sequential(nn.Linear(d_model, d_model))

    @abstractmethod
    def _scan(
        self, u: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the model's output (B, L, D) for inputs (B, L, D), and its last state."""

    @abstractmethod
    def _advance(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the model's output (B, D) for one position (B, D), and the new state."""

    @abstractmethod
    def _skip(self) -> Tensor:
        """Returns the skip connection's weights (D)."""

    def _finish(self, y: Tensor, u: Tensor, dtype: torch.dtype) -> Tensor:
        y = (y + u * self._skip().to(u.dtype)).to(dtype)
        projected: Tensor = self.output_linear(self.dropout(self.activation(y)))
        return projected

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        u = x.to(recurrent_dtype(x.dtype))
        y, last = self._scan(
            u, None if state is None else state["ssm"], segment_resets(segment_ids)
        )
        return self._finish(y, u, x.dtype), {"ssm": last}

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        u = x_t.to(recurrent_dtype(x_t.dtype))
        with autocast_off(u):
            y, last = self._advance(u, state["ssm"])
        return self._finish(y, u, x_t.dtype), {"ssm": last.to(state["ssm"].dtype)}

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        device, dtype = self._where(device, dtype)
        kind = recurrent_dtype(dtype).to_complex()
        return {"ssm": torch.zeros(batch, self.d_model, self.n_complex, dtype=kind, device=device)}


class DiagonalLayer(SSMLayer):
    """A layer whose state matrix is diagonal: x_t = a x_{t-1} + b u_t, y_t = Re(c · x_t) in each
    channel."""

    @abstractmethod
    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the discrete system a, b, c, complex (D, N), in float64."""

    def _scan(
        self, u: Tensor, state: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        a, b, c = self.system()
        return lti_scan(u, a, b, c, state, resets, self.chunk_size)

    def _advance(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = (t.to(u.dtype.to_complex()) for t in self.system())
        state = a * state + b * u.unsqueeze(-1)
        return (c * state).sum(-1).real, state

    def convolution_kernel(self, length: int) -> Tensor:
        """Returns the kernel (D, L) of the state-space model's convolution, without the skip
        connection.

        Args:
            length: L.
        """
        a, b, c = self.system()
        return vandermonde_kernel(a, b * c, length)
