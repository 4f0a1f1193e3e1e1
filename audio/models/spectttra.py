r"""SpecTTTra (SONICS, arXiv 2408.14080): spectral and temporal tokens of a mel spectrogram, one
transformer.

temporal tokens = GELU(conv(x over time, stride t)) + position          T / t of them
spectral tokens = GELU(conv(xᵀ over bands, stride f)) + position        F / f of them
logit           = W mean(transformer(norm([temporal; spectral])))       fake = 1

Parameters are named as in the published checkpoints (MIT), which are read strictly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.audio.calibration import Segment
from longseq.audio.features import LogMel, unit_gain
from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ArgumentError, ConfigError


class _Positions(nn.Module):
    def __init__(self, tokens: int, d_model: int) -> None:
        super().__init__()
        self.pe = nn.Parameter(0.02 * torch.randn(1, tokens, d_model))


class Tokenizer(nn.Module):
    """Cuts (B, C, L) into clips of ``clip`` positions and embeds each: (B, L // clip, D).

    Args:
        channels: C.
        length: L.
        clip: positions per token.
        d_model: width D.
    """

    def __init__(self, channels: int, length: int, clip: int, d_model: int) -> None:
        super().__init__()
        self.tokens = length // check_positive("clip", clip)
        self.conv1d = nn.Conv1d(channels, d_model, clip, stride=clip, bias=False)
        self.pos_encoder = _Positions(self.tokens, d_model)
        self.norm_pre = nn.LayerNorm(d_model, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the tokens."""
        return self.norm_pre(F.gelu(self.conv1d(x)).transpose(1, 2) + self.pos_encoder.pe)


class _TwoTokenizers(nn.Module):
    def __init__(self, bands: int, frames: int, f_clip: int, t_clip: int, d_model: int) -> None:
        super().__init__()
        self.temporal_tokenizer = Tokenizer(bands, frames, t_clip, d_model)
        self.spectral_tokenizer = Tokenizer(frames, bands, f_clip, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(
            (self.temporal_tokenizer(x), self.spectral_tokenizer(x.transpose(1, 2))), 1
        )


class _Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        return self.proj(y.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, hidden)
        self.fc2 = nn.Linear(hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = _Attention(d_model, n_heads, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = _MLP(d_model, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Transformer(nn.Module):
    def __init__(self, blocks: list[_Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _Encoder(nn.Module):
    def __init__(
        self, tokenizer: _TwoTokenizers, transformer: _Transformer, dropout: float
    ) -> None:
        super().__init__()
        self.st_tokenizer = tokenizer
        self.pos_drop = nn.Dropout(dropout)
        self.transformer = transformer

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(self.pos_drop(self.st_tokenizer(x)))


class SpecTTTra(nn.Module):
    """SpecTTTra on audio of one length; shorter clips are padded with zeros, as the published
    loader does.

    Args:
        seconds: length of a clip, s.
        frames: mel frames that the spectrogram is resized to; 128 for 5 s, 3744 for 120 s.
        f_clip: mel bands a spectral token.
        t_clip: frames a temporal token.
        d_model: width.
        n_layers: transformer blocks.
        n_heads: attention heads.
        mlp_ratio: hidden width of the MLP as a multiple of the width, rounded down.
        dropout: of positions and attention.
        sample_rate: Hz.
    """

    def __init__(
        self,
        seconds: float = 5.0,
        frames: int = 128,
        f_clip: int = 1,
        t_clip: int = 3,
        d_model: int = 384,
        n_layers: int = 12,
        n_heads: int = 6,
        mlp_ratio: float = 2.67,
        dropout: float = 0.1,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        check_divisible("d_model", d_model, "n_heads", n_heads)
        self.ft_extractor = LogMel(sample_rate=sample_rate)
        mel = self.ft_extractor.audio2melspec
        if seconds * sample_rate < mel.shortest or frames < t_clip or mel.n_mels < f_clip:
            raise ConfigError(f"{seconds} s and {frames} frames make no token of {t_clip} frames")
        self.seconds, self.frames, self.sample_rate = (
            seconds,
            check_positive("frames", frames),
            sample_rate,
        )
        tokenizer = _TwoTokenizers(mel.n_mels, frames, f_clip, t_clip, d_model)
        hidden = int(d_model * mlp_ratio)
        blocks = [
            _Block(d_model, n_heads, hidden, dropout)
            for _ in range(check_positive("n_layers", n_layers))
        ]
        self.encoder = _Encoder(tokenizer, _Transformer(blocks), dropout)
        self.classifier = nn.Linear(d_model, 1)

    @property
    def samples(self) -> int:
        """Samples a clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def tokens(self) -> tuple[int, int]:
        """Number of temporal and of spectral tokens."""
        tokenizer = self.encoder.st_tokenizer
        return tokenizer.temporal_tokenizer.tokens, tokenizer.spectral_tokenizer.tokens

    def features(self, audio: Tensor) -> Tensor:
        """Returns the resized features (B, bands, frames) of audio (B, N)."""
        if audio.ndim != 2 or not 1 <= audio.shape[1] <= self.samples:
            raise ArgumentError(
                f"audio must be (B, N) with 1 ≤ N ≤ {self.samples} ({self.seconds:g} s), "
                f"got {tuple(audio.shape)}"
            )
        audio = unit_gain(F.pad(audio.float(), (0, self.samples - audio.shape[1])))
        mel = self.ft_extractor(audio)[:, None]
        size = (mel.shape[2], self.frames)
        return F.interpolate(mel, size=size, mode="bilinear", align_corners=False)[:, 0]

    def forward(self, audio: Tensor, equaliser: Tensor | None = None) -> Tensor:
        """Returns the log-odds (B,) that each clip is synthetic.

        Args:
            audio: samples (B, N), at most ``seconds`` long.
            equaliser: added to the features, (B, 1, n_mels); augmentation in training.
        """
        x = self.features(audio)
        if equaliser is not None:
            x = x + equaliser.transpose(1, 2)
        return self.classifier(self.encoder(x).mean(1)).squeeze(-1)

    @torch.inference_mode()
    def segments(self, chunks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """Yields the clips of a recording that comes in chunks; the last is padded with zeros.

        A rest of less than a tenth of a clip is left out, unless it is all there is.

        Args:
            chunks: float32 arrays of samples (N,), of any lengths.
        """
        buffer, done = np.zeros(0, np.float32), 0
        device = self.classifier.weight.device

        def score(clip: np.ndarray) -> Segment:
            logit = float(self(torch.from_numpy(clip).to(device)[None]))
            rate = self.sample_rate
            return Segment(done / rate, (done + len(clip)) / rate, logit, float(len(clip)))

        for chunk in chunks:
            buffer = np.concatenate((buffer, chunk))
            while len(buffer) >= self.samples:
                yield score(buffer[: self.samples])
                done, buffer = done + self.samples, buffer[self.samples :]
        if len(buffer) >= self.samples // 10 or (len(buffer) and not done):
            yield score(buffer)
