"""TPGN: a parallel gated network down the rows of a folded series, and a linear map along them
(https://arxiv.org/abs/2409.17703)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

_EPS = 1e-5


class LongTerm(nn.Module):
    """The parallel gated network of every column of the folded series.

        h_r = A [u_{r-W}, …, u_{r-1}],   g_r = σ(W_g [u_r, h_r]),   c_r = tanh(W_c [u_r, h_r])
        y = F [g_r h_r + (1 - g_r) c_r]_r

    with W = R - 1, so that every row sees all rows before it in one step. The published code gates
    like this; the paper's equation 5 has the gated h_r inside the tanh, as the mixer ``pgn`` does.

    Args:
        rows: R.
        inputs: numbers of a cell: the value and its calendar features.
        channels: series C, each with its own weights.
        d_model: width D.
    """

    def __init__(self, rows: int, inputs: int, channels: int, d_model: int) -> None:
        super().__init__()
        self.window, self.channels, self.d_model = rows - 1, channels, d_model
        own = {"groups": channels}
        wide = channels * d_model
        self.hidden_MLP = nn.Conv1d(channels * inputs, wide, self.window, **own)
        self.gate = nn.Conv1d(channels * (inputs + d_model), 2 * wide, 1, **own)
        self.fc = nn.Conv1d(wide, wide, rows, **own)

    def forward(self, u: Tensor) -> Tensor:
        """Maps cells (N, C, I, R) to (N, C, D)."""
        before = nn.functional.pad(u, (self.window, 0))[..., :-1]
        h = self.hidden_MLP(before.flatten(1, 2)).unflatten(1, (self.channels, self.d_model))
        both = self.gate(torch.cat([u, h], 2).flatten(1, 2))
        gate, candidate = both.unflatten(1, (self.channels, -1)).chunk(2, dim=2)
        gate = torch.sigmoid(gate)
        y = gate * h + (1 - gate) * torch.tanh(candidate)
        return self.fc(y.flatten(1, 2)).unflatten(1, (self.channels, self.d_model))[..., 0]


class ShortTerm(nn.Module):
    """A linear map along every row, then one over the rows.

    Args:
        rows: R.
        inputs: numbers of a cell.
        channels: series C.
        d_model: width D.
        period: columns P.
    """

    def __init__(self, rows: int, inputs: int, channels: int, d_model: int, period: int) -> None:
        super().__init__()
        self.channels, self.d_model = channels, d_model
        wide = channels * d_model
        self.fc_row = nn.Conv1d(channels * inputs, wide, period, groups=channels)
        self.fc_col = nn.Conv1d(wide, wide, rows, groups=channels)

    def forward(self, u: Tensor) -> Tensor:
        """Maps cells (B, R, C, I, P) to (B, C, D)."""
        batch = len(u)
        row = self.fc_row(u.flatten(0, 1).flatten(1, 2))[..., 0]
        y = self.fc_col(row.unflatten(0, (batch, -1)).transpose(1, 2))
        return y.unflatten(1, (self.channels, self.d_model))[..., 0]


class Branches(nn.Module):
    """Both branches, and the map from what they say of a column to that column's future rows."""

    def __init__(
        self,
        rows: int,
        ahead: int,
        inputs: int,
        channels: int,
        d_model: int,
        period: int,
    ) -> None:
        super().__init__()
        self.LNN_dim = LongTerm(rows, inputs, channels, d_model)
        self.s_t_p_e = ShortTerm(rows, inputs, channels, d_model, period)
        self.fc = nn.Conv1d(channels * 2 * d_model, channels * ahead, 1, groups=channels)


class TPGN(nn.Module):
    """Temporal PGN: the context is folded into rows of one period; columns go through a parallel
    gated network, rows through linear maps, and every column is continued on its own.

    Weights belong to series (grouped maps), so the number of series is fixed. The state-dict layout
    is that of the published code. That takes contexts and horizons that are multiples of the
    period; here a context is filled up in front with its first row, and a horizon is cut from whole
    periods, so that any will do, and multiples give the published numbers.

    Args:
        channels: series C.
        context: L, more than one period.
        horizon: h.
        period: P in rows.
        features: calendar features F.
        d_model: width D.
        normalise: take the context's mean and deviation out first, and put them back.

    Raises:
        ConfigError: for a context of one period or less.
    """

    def __init__(
        self,
        channels: int,
        context: int,
        horizon: int,
        period: int = 24,
        features: int = 4,
        d_model: int = 16,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (
            ("channels", channels),
            ("horizon", horizon),
            ("period", period),
            ("d_model", d_model),
        ):
            check_positive(name, value)
        rows, ahead = -(-context // period), -(-horizon // period)
        if rows < 2:
            raise ConfigError(
                f"the context ({context}) must be longer than the period ({period}): TPGN reads "
                "the periods before"
            )
        self.context, self.horizon, self.period = context, horizon, period
        self.rows, self.normalise = rows, normalise
        self.TPGN = Branches(rows, ahead, 1 + features, channels, d_model, period)

    def forward(self, x: Tensor, x_mark: Tensor) -> Tensor:
        """Maps a context (B, L, C) with calendar features (B, L, F) to a forecast (B, h, C).

        Raises:
            ConfigError: for a context of another length.
        """
        if x.shape[1] != self.context:
            raise ConfigError(f"the model takes a context of {self.context} rows, got {x.shape[1]}")
        batch, _, channels = x.shape
        level, spread = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
        if self.normalise:
            level = x.mean(1, keepdim=True).detach()
            spread = (x.var(1, keepdim=True, correction=0) + _EPS).sqrt()
        lack = self.rows * self.period - self.context
        z = (x - level) / spread
        cells = torch.cat([z.unsqueeze(-1), x_mark.unsqueeze(2).expand(-1, -1, channels, -1)], -1)
        cells = torch.cat([cells[:, :1].expand(-1, lack, -1, -1), cells], 1)
        cells = cells.unflatten(1, (self.rows, self.period))  # (B, R, P, C, I)
        columns = cells.permute(0, 2, 3, 4, 1).flatten(0, 1)  # (B · P, C, I, R)
        long = self.TPGN.LNN_dim(columns)
        short = self.TPGN.s_t_p_e(cells.permute(0, 1, 3, 4, 2))
        short = short.unsqueeze(1).expand(-1, self.period, -1, -1).flatten(0, 1)
        both = torch.cat([short, long], -1).flatten(1).unsqueeze(-1)
        y = self.TPGN.fc(both)[..., 0].unflatten(1, (channels, -1))  # (B · P, C, R')
        y = y.unflatten(0, (batch, self.period)).permute(0, 3, 1, 2).flatten(1, 2)
        return y[:, : self.horizon] * spread + level
