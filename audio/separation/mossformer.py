"""MossFormer: gated attention that is full inside a chunk and linear over the whole recording."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.ops.causal_conv1d import causal_conv1d


class DepthwiseConv(nn.Module):
    """x + depthwise convolution of x over time, centred.

    Args:
        width: channels.
        kernel: taps, odd.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same."""
        late = self.conv.kernel_size[0] // 2  # the causal operator, read so many positions later
        y, _ = causal_conv1d(F.pad(x, (0, 0, 0, late)), self.conv.weight.squeeze(1))
        return x + y[:, late:]


class ConvModule(nn.Module):
    """Norm, map, SiLU and a depthwise convolution (arXiv 2302.11824, figure 2b).

    Args:
        width: of the input.
        out: of the output.
        kernel: taps of the convolution.
    """

    def __init__(self, width: int, out: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, out)
        self.conv = DepthwiseConv(out, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to (B, L, out)."""
        return self.conv(F.silu(self.linear(self.norm(x))))


class MossFormerBlock(nn.Module):
    """One block of convolution-augmented joint attention (arXiv 2302.11824, eq. 1-9).

        U, V, Z = Conv(X)
        A(W) = ReLU²(Q Kᵀ / P) W inside chunks of P  +  Q' (K'ᵀ W / L) over all L positions
        X + Conv(σ(U ⊙ A(V)) ⊙ V ⊙ A(U))

    with Q, K, Q', K' scaled and shifted copies of Z, rotated by their positions.

    Args:
        width: D.
        query: width of Z.
        expand: width of U and V as a multiple of D.
        chunk: P, positions.
        kernel: taps of the convolutions.
        dropout: on the branch.
    """

    def __init__(
        self,
        width: int,
        query: int = 32,
        expand: int = 2,
        chunk: int = 128,
        kernel: int = 17,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.chunk = check_positive("chunk", chunk)
        self.hidden = ConvModule(width, 2 * expand * width, kernel)
        self.shared = ConvModule(width, query, kernel)
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(4, query))
        self.shift = nn.Parameter(torch.zeros(4, query))
        self.out = ConvModule(expand * width, width, kernel)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same."""
        length = x.shape[1]
        hidden = self.hidden(x)
        spare = -length % self.chunk
        z = self.shared(x).unsqueeze(2) * self.scale + self.shift
        z = _rotate(z)
        q, k, q_all, k_all = F.pad(z, (0, 0, 0, 0, 0, spare)).unbind(2)
        if spare:  # positions that are not there are no keys
            real = torch.arange(length + spare, device=x.device) < length
            k, k_all = k * real.unsqueeze(-1), k_all * real.unsqueeze(-1)
        w = F.pad(hidden, (0, 0, 0, spare))
        q_part, k_part, w_part = (one.unflatten(1, (-1, self.chunk)) for one in (q, k, w))
        scores = torch.relu(q_part @ k_part.mT / self.chunk).square()
        attended = (scores @ w_part).flatten(1, 2) + q_all @ (k_all.mT @ w / length)
        attended = attended[:, :length]
        u, v = hidden.chunk(2, -1)
        of_u, of_v = attended.chunk(2, -1)
        return x + self.dropout(self.out(torch.sigmoid(u * of_v) * (v * of_u)))


def _rotate(z: Tensor) -> Tensor:
    """Rotates pairs of channels of (B, L, 4, K) by angles that grow with the position."""
    half = z.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=z.device, dtype=torch.float32) / half)
    angles = torch.arange(z.shape[1], device=z.device, dtype=torch.float32)[:, None] * rates
    cos, sin = angles.cos().to(z.dtype).unsqueeze(1), angles.sin().to(z.dtype).unsqueeze(1)
    a, b = z[..., :half], z[..., half : 2 * half]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, z[..., 2 * half :]], -1)
