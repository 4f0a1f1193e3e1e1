r"""Polarized self-attention (Liu et al. 2021, arXiv 2107.00782): weights of channels and of places.

channels:  w_c = σ(W_z (V softmax_places(q))),        q = W_q x of one channel, V = W_v x of half
places:    w_p = σ(softmax(mean(Q)ᵀ V)) in parallel,  σ(mean(Q)ᵀ softmax_places(V)) in sequence

each a 1×1 convolution, Q and V of half the channels: full resolution in one direction while the
other is collapsed to one number. The softmax of the second line stands where the published code has
it; the paper puts it over the channels of mean(Q).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from longseq.core.checks import check_choice, check_positive

Form = Literal["parallel", "sequential"]


class PolarizedAttention(nn.Module):
    """Weighs a map (B, C, H, W) by both weights: their sum, or one after the other.

    Parameters have the names and shapes of the published ``PSA_p`` and ``PSA_s``.

    Args:
        channels: C, at least 2; 8 in sequence.
        form: "parallel" for w_c x + w_p x, "sequential" for w_p(y) y with y = w_c x.
    """

    def __init__(self, channels: int, form: Form = "sequential") -> None:
        super().__init__()
        self.form = check_choice("form", form, Form)
        inner = check_positive("channels // 2", channels // 2)
        self.conv_q_right = nn.Conv2d(channels, 1, 1, bias=False)
        self.conv_v_right = nn.Conv2d(channels, inner, 1, bias=False)
        if form == "parallel":
            self.conv_up: nn.Module = nn.Conv2d(inner, channels, 1, bias=False)
        else:
            small = check_positive("channels // 8", inner // 4)
            self.conv_up = nn.Sequential(
                nn.Conv2d(inner, small, 1),
                nn.LayerNorm([small, 1, 1]),
                nn.ReLU(),
                nn.Conv2d(small, channels, 1),
            )
        self.conv_q_left = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv_v_left = nn.Conv2d(channels, inner, 1, bias=False)
        for conv in (self.conv_q_right, self.conv_v_right, self.conv_q_left, self.conv_v_left):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def _channels(self, x: Tensor) -> Tensor:
        """Returns the channels' weights, (B, C, 1, 1)."""
        share = self.conv_q_right(x).flatten(2).softmax(2)  # (B, 1, L)
        seen = self.conv_v_right(x).flatten(2) @ share.transpose(1, 2)
        return self.conv_up(seen[..., None]).sigmoid()

    def _places(self, x: Tensor) -> Tensor:
        """Returns the places' weights, (B, 1, H, W)."""
        query = self.conv_q_left(x).mean((2, 3))[:, None]  # (B, 1, C/2)
        values = self.conv_v_left(x).flatten(2)
        if self.form == "parallel":
            weights = (query @ values).softmax(2)
        else:
            weights = query @ values.softmax(2)
        return weights.unflatten(2, x.shape[2:]).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        if self.form == "parallel":
            return x * self._channels(x) + x * self._places(x)
        x = x * self._channels(x)
        return x * self._places(x)
