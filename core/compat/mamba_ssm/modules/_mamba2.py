"""What the two Mamba-2 layers of mamba-ssm share: parameters and their initialisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.compat.mamba_ssm.modules._checks import check_sizes
from longseq.core.compat.mamba_ssm.modules.mamba_simple import inverse_softplus, step_sizes
from longseq.core.errors import ConfigError
from longseq.core.ops.precision import compute_dtype


class Mamba2Layer(nn.Module):
    """Projections, convolution, decays and skip of a Mamba-2 layer; the norm is the layers' own.

    Attributes:
        d_inner: inner width.
        d_ssm: of it, what passes the scan.
        nheads: heads H of the scan.
        conv_dim: width of the convolution: x, B and C.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int,
        d_conv: int,
        conv_init: float | None,
        expand: int,
        headdim: int,
        d_ssm: int | None,
        ngroups: int,
        dt_limit: tuple[float, float],
        chunk_size: int,
        layer_idx: int | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        sizes = {"headdim": headdim, "ngroups": ngroups, "chunk_size": chunk_size}
        check_sizes(name, d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand, **sizes)
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.conv_init, self.headdim, self.ngroups = conv_init, headdim, ngroups
        self.d_inner = expand * d_model
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        check_sizes(name, d_ssm=self.d_ssm)
        if self.d_ssm > self.d_inner:
            raise ConfigError(f"{name}: d_ssm ({d_ssm}) is more than expand · d_model")
        if self.d_ssm % headdim:
            raise ConfigError(f"headdim ({headdim}) must divide the inner width ({self.d_ssm})")
        self.nheads = self.d_ssm // headdim
        if self.nheads % ngroups:
            raise ConfigError(f"{name}: ngroups ({ngroups}) must divide the {self.nheads} heads")
        if not dt_limit[0] <= dt_limit[1]:
            raise ConfigError(f"{name}: dt_limit must be (low, high), got {dt_limit!r}")
        self.dt_limit, self.chunk_size, self.layer_idx = dt_limit, chunk_size, layer_idx
        self.conv_dim = self.d_ssm + 2 * ngroups * d_state
        self.act = nn.SiLU()

    def _project(self, bias: bool, conv_bias: bool, where: dict[str, Any]) -> None:
        rows = 2 * self.d_inner + 2 * self.ngroups * self.d_state + self.nheads
        self.in_proj = nn.Linear(self.d_model, rows, bias, **where)
        width, taps = self.conv_dim, self.d_conv
        self.conv1d = nn.Conv1d(
            width, width, taps, padding=taps - 1, groups=width, bias=conv_bias, **where
        )
        if self.conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -self.conv_init, self.conv_init)

    def _rates(
        self,
        A_init_range: tuple[float, float],
        dt_range: tuple[float, float, float],
        skips: int,
        where: dict[str, Any],
    ) -> None:
        if not 0 < A_init_range[0] <= A_init_range[1]:
            raise ConfigError(f"A_init_range must be positive and rising, got {A_init_range!r}")
        self.dt_bias = nn.Parameter(inverse_softplus(step_sizes(self.nheads, *dt_range, **where)))
        rates = torch.empty(self.nheads, dtype=torch.float32, device=where["device"])
        log = rates.uniform_(*A_init_range).log().to(dtype=where["dtype"])
        self.A_log = nn.Parameter(log)
        self.D = nn.Parameter(torch.ones(skips, device=where["device"]))
        for one in (self.dt_bias, self.A_log, self.D):
            one._no_weight_decay = True  # type: ignore[attr-defined]

    def _decay(self) -> Tensor:
        return -torch.exp(self.A_log.to(compute_dtype(self.A_log)))

    def _skip(self) -> Tensor:
        heads = self.D.shape[0] == self.nheads
        return self.D if heads else self.D.view(self.nheads, self.headdim)
