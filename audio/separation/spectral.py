"""A separator on the short-time spectrum: complex masks, by attention over all frames and short
convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.audio.separation.mossformer import DepthwiseConv
from longseq.audio.separation.voices import fitted
from longseq.core.checks import check_divisible, check_positive
from longseq.core.mixers.attention import Attention

_PLAIN = 1000  # frames


class FrameAttention(Attention):
    """Attention over all frames. In training on a CPU in 16 bits its products are plain ones up to
    a thousand frames: backwards, torch's kernel takes three times as long there (11.7 against 4.0
    ms at 251 frames of 4 recordings and 5 heads, AMD EPYC with AVX-512 and bf16).

    Args:
        width: D.
        n_heads: a divisor of D.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__(width, n_heads, bidirectional=True)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """See ``AttentionBase.attend``."""
        short = q.device.type == "cpu" and q.element_size() == 2 and k.shape[1] <= _PLAIN
        if not (short and torch.is_grad_enabled() and mask is None and not is_causal):
            return super().attend(q, k, v, mask, is_causal)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = (q * self.d_head**-0.5) @ k.mT
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


class FrameBlock(nn.Module):
    """Attention over all frames, then a map over neighbouring ones, each after a norm and added.

        X + Attention(norm(X)),   X + W₂ SiLU(Conv(W₁ norm(X)))

    Both begin as nothing: their last maps are zero.

    Args:
        width: D.
        n_heads: of the attention, a divisor of D.
        expand: hidden width as a multiple of D.
        kernel: frames of the convolution, odd.
        dropout: on both branches.
    """

    def __init__(
        self, width: int, n_heads: int, expand: int = 3, kernel: int = 5, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FrameAttention(width, n_heads)
        self.up, self.conv = nn.Linear(width, expand * width), DepthwiseConv(expand * width, kernel)
        self.down = nn.Linear(expand * width, width)
        self.dropout = nn.Dropout(dropout)
        for last in (self.attention.o_proj, self.down):
            nn.init.zeros_(last.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same."""
        x = x + self.dropout(self.attention(self.norm1(x))[0])
        return x + self.dropout(self.down(F.silu(self.conv(self.up(self.norm2(x))))))


class SpectralSeparator(nn.Module):
    """Complex masks on the short-time spectrum (Williamson, Wang and Wang 2016, "Complex ratio
    masking"), made by attention over all frames (arXiv 1706.03762) and convolutions.

        x_s = STFT⁻¹(M_s ⊙ X),   M = W norm(blocks(W' norm(X / √|X|, log |X|))),   X = STFT(x)

    A recording is scaled to a mean power of one and back, so that its level changes nothing else,
    and the voices by the one factor that brings their sum nearest to the recording (``fitted``).

    Args:
        width: D.
        n_layers: blocks.
        voices: number S of them.
        window: samples of the square root of a Hann window; its step is a quarter.
        n_heads: of the attention.
        **block: see ``FrameBlock``.
    """

    def __init__(
        self,
        width: int = 160,
        n_layers: int = 6,
        voices: int = 2,
        window: int = 256,
        n_heads: int = 5,
        **block: Any,
    ) -> None:
        super().__init__()
        self.voices = check_positive("voices", voices)
        self.window = check_positive("window", window)
        self.stride, self.bins = check_divisible("window", window, "4", 4), window // 2 + 1
        self.norm, self.before = nn.LayerNorm(3 * self.bins), nn.Linear(3 * self.bins, width)
        blocks = [FrameBlock(width, n_heads, **block) for _ in range(n_layers)]
        self.network = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.after = nn.Linear(width, 2 * voices * self.bins)
        nn.init.normal_(self.after.weight, std=0.02)
        with torch.no_grad():  # at first every voice is half of the recording
            self.after.bias.zero_()
            self.after.bias[: voices * self.bins] = 1 / voices
        taper = torch.hann_window(window).sqrt()
        self.register_buffer("taper", taper, persistent=False)

    taper: Tensor

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the voices (B, S, N) of recordings (B, N)."""
        length = audio.shape[1]
        scale = audio.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
        frame = {"n_fft": self.window, "hop_length": self.stride, "window": self.taper}
        spectrum = torch.stft(
            audio / scale, pad_mode="constant", return_complex=True, **frame
        ).mT  # (B, L, bins)
        size = spectrum.abs()
        even = spectrum * (size + 1e-3).rsqrt()
        features = torch.cat([even.real, even.imag, torch.log(size + 1e-2)], -1)
        masks = self.after(self.network(self.before(self.norm(features))))
        masks = masks.to(size.dtype).unflatten(-1, (2, self.voices, self.bins)).movedim(3, 1)
        masked = torch.complex(*masks.unbind(3)) * spectrum.unsqueeze(1)
        out = torch.istft(masked.flatten(0, 1).mT, length=length, **frame)
        return fitted(out.unflatten(0, (-1, self.voices)), audio)
