"""SpaceTime: companion state-space layers and a closed-loop decoder
(https://arxiv.org/abs/2303.09489)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.companion import Companion
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.lti import lti_scan

_ORDERS = 4
_SHORTEST, _LONGEST = 4, 64
_PER_GROUP = 2 * _ORDERS


class Residuals(nn.Module):
    """Fixed filters before the first layer: differences of order 0 to 3, and the value less a
    moving average.

    Channels come in groups of eight: four differences, then four moving averages, whose windows of
    4 to 63 rows are drawn when the model is made and stored with it.

    Args:
        d_model: width D, a multiple of 8.
    """

    diff_kernel: Tensor
    ma_r_kernel: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.groups = check_divisible(
            "d_model", d_model, "channels of a group of filters", _PER_GROUP
        )
        orders = range(_ORDERS)
        rows = [[(-1.0) ** k * math.comb(n, k) for k in orders] for n in orders]
        windows = torch.randint(_SHORTEST, _LONGEST, (self.groups * _ORDERS, 1))
        average = (torch.arange(_LONGEST) < windows) / windows
        impulse = (torch.arange(_LONGEST) == 0).float()
        self.register_buffer("diff_kernel", torch.tensor(rows).repeat(self.groups, 1))
        self.register_buffer("ma_r_kernel", impulse - average)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        differences = nn.functional.pad(self.diff_kernel, (0, _LONGEST - _ORDERS))
        both = [
            kernel.unflatten(0, (self.groups, _ORDERS))
            for kernel in (differences, self.ma_r_kernel)
        ]
        return fft_conv(x, torch.cat(both, 1).flatten(0, 1))


class PointwiseMap(nn.Module):
    """GELU, dropout, linear map.

    Args:
        d_in: width in.
        d_out: width out.
        dropout: before the map.
    """

    def __init__(self, d_in: int, d_out: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, d_out)."""
        return self.layers(x)


class EncoderBlock(nn.Module):
    """z = residuals(x); y = ssm(z); y = y + mlp(y); y + z."""

    def __init__(self, d_model: int, d_state: int, norm_order: int, dropout: float) -> None:
        super().__init__()
        self.pre = Residuals(d_model)
        self.ssm = Companion(
            d_model,
            d_state,
            check_divisible("d_model", d_model, "channels per kernel", 8),
            norm_order,
        )
        self.mlp = PointwiseMap(d_model, d_model, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, L, D)."""
        z = self.pre(x)
        y, _ = self.ssm(z)
        return y + self.mlp(y) + z


class DecoderBlock(nn.Module):
    """The closed-loop layer."""

    def __init__(self, d_model: int, d_state: int, norm_order: int) -> None:
        super().__init__()
        self.ssm = Companion(
            d_model, d_state, norm_order=norm_order, skip_connection=False, closed_loop=True
        )
        # Published checkpoints hold the skip weights, though the layer has no skip: a gradient
        # never comes.
        self.ssm.skip.requires_grad_(False)


class Outputs(NamedTuple):
    """What training supervises.

    Attributes:
        forecast: closed loop (N, h, 1), relative to the mean of the context.
        fitted: open loop (N, L, 1): position t predicts the value at t + 1.
        next_input: the decoder's prediction of its own next input (N, L, D).
        inputs: these inputs (N, L, D).
    """

    forecast: Tensor
    fitted: Tensor
    next_input: Tensor
    inputs: Tensor


class SpaceTime(nn.Module):
    """Context (B, L, C) to forecast (B, h, C); every series goes through the same network on its
    own.

    The value, less the mean of the context, is repeated in all channels; one encoder block; and a
    decoder whose state after the context is rolled out with its own predicted inputs.

    As published, the state after the context is built with b before its normalisation, while the
    open loop, and the loop that is closed afterwards, use the normalised one. By default b is the
    normalised one throughout, so that the closed loop is just the open loop fed with its own
    predictions; ``compat=True`` is as published. The state dict is the published one in both cases.

    Args:
        horizon: h.
        d_model: width D, a multiple of 8.
        d_state: M, dimension of every companion matrix.
        norm_order: order of the norm that is divided out of a (and of b, c and k in the decoder).
        dropout: before every linear map.
        compat: the published behaviour.

    Raises:
        ConfigError: for sizes that do not fit.
    """

    def __init__(
        self,
        horizon: int,
        d_model: int = 128,
        d_state: int = 64,
        norm_order: int = 1,
        dropout: float = 0.25,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.horizon = check_positive("horizon", horizon)
        if norm_order < 1:
            raise ConfigError(f"norm_order must be at least 1, got {norm_order}")
        self.d_model, self.d_state, self.norm_order, self.compat = (
            d_model,
            d_state,
            norm_order,
            compat,
        )
        block = EncoderBlock(d_model, d_state, norm_order, dropout)
        self.encoder = nn.ModuleDict({"blocks": nn.ModuleList([block])})
        self.decoder = nn.ModuleDict({"blocks": DecoderBlock(d_model, d_state, norm_order)})
        self.output = PointwiseMap(d_model, 1, dropout)

    @property
    def _block(self) -> EncoderBlock:
        return self.encoder["blocks"][0]  # type: ignore[index]

    @property
    def _loop(self) -> Companion:
        loop = self.decoder["blocks"].ssm
        assert isinstance(loop, Companion)
        return loop

    def forward(self, x: Tensor) -> Tensor:
        """Maps a context (B, L, C) to a forecast (B, h, C)."""
        u, mean = self._series(x)
        forecast, _, _ = self._closed(u)
        return (forecast + mean).unflatten(0, (x.shape[0], x.shape[2])).squeeze(-1).transpose(1, 2)

    @staticmethod
    def _series(x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns series (B·C, L, 1) less their means, and the means (B·C, 1, 1)."""
        rows = x.transpose(1, 2).reshape(-1, x.shape[1], 1)
        mean = rows.mean(1, keepdim=True)
        return rows - mean, mean

    def _closed(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the forecast (N, h, 1), and the decoder's inputs and open-loop outputs (N, L,
        D)."""
        z = self._block(u.expand(-1, -1, self.d_model))
        y, state = self._loop(z)
        after = state["ssm"]
        if not self.compat:
            # ``rollout`` multiplies the state by the norm of b, as published.
            after = after / self._norm(self._loop.b).clamp(min=1e-4).unsqueeze(0)
        rolled, _ = self._loop.rollout({"ssm": after}, self.horizon)
        return self.output(rolled), z, y

    def _norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, self.norm_order, dim=-1, keepdim=True)

    def outputs(self, u: Tensor) -> Outputs:
        """Returns all that training supervises.

        Args:
            u: series (N, L, 1) less their means.
        """
        forecast, z, y = self._closed(u)
        a, b, _ = self._loop.system()
        k = self._loop.k.to(a.dtype)
        k = k / self._norm(k).clamp(min=1e-4)
        next_input, _ = lti_scan(z, a, b, k)
        return Outputs(forecast, self.output(y), next_input.to(z.dtype), z)

    def loss(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the published training loss: root mean square errors of three predictions, added.

        The forecast; the open-loop prediction of the context's (and the first target's) next value;
        and the decoder's prediction of its own next input, both from the row on at which the state
        is filled.

        Args:
            x: context (B, L, C), longer than ``d_state``.
            y: target (B, h, C).
            mask: where the target was observed (B, h, C), bool; everywhere if None.

        Raises:
            ConfigError: if the context is too short to fill the state.
        """
        if x.shape[1] <= self.d_state + 1:
            raise ConfigError(
                f"SpaceTime with d_state {self.d_state} is trained on contexts of more than "
                f"{self.d_state + 1} rows, got {x.shape[1]}"
            )
        u, mean = self._series(x)
        target = y.transpose(1, 2).reshape(-1, y.shape[1], 1) - mean
        out, first = self.outputs(u), self.d_state
        if mask is not None:
            # An error of zero, and the mean over those that are left.
            known = mask.transpose(1, 2).reshape(target.shape)
            target = torch.where(known, target, out.forecast.detach())
        series = torch.cat([u, target[:, :1]], dim=1)
        pairs = (
            (out.forecast, target),
            (out.fitted[:, first - 1 :], series[:, first:]),
            (out.next_input[:, first - 1 : -1], out.inputs[:, first:]),
        )
        # The square root has no gradient at 0.
        errors = [nn.functional.mse_loss(guess, truth) for guess, truth in pairs]
        if mask is not None:
            errors[0] = errors[0] * mask.numel() / mask.sum().clamp(min=1)
        parts = [torch.sqrt(error + 1e-12) for error in errors]
        return parts[0] + parts[1] + parts[2]
