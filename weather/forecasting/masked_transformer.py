"""A small masked-and-forecast transformer in the manner of Prithvi WxC, on periodic fields."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers import State


class WindowBlock(nn.Module):
    """Attention among the tokens of every window, or among those at one place of all windows; then
    an MLP.

    Args:
        width: channels D.
        heads: of the attention.
        tokens: of a window, for local attention; None for attention across windows.
    """

    def __init__(self, width: int, heads: int, tokens: int | None) -> None:
        super().__init__()
        self.heads, self.local = heads, tokens is not None
        self.norm = nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, tokens, tokens)) if tokens else None
        # Across windows: of the cosines of the windows' offsets, so that none is the first.
        self.offset = None if tokens else nn.Linear(4, heads)
        self.mlp = nn.Sequential(
            nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def _bias(self, grid: tuple[int, int]) -> Tensor:
        if self.bias is not None:
            return self.bias
        assert self.offset is not None
        like = self.offset.weight
        steps = [torch.arange(n, dtype=torch.float64, device=like.device) for n in grid]
        turns = [2 * torch.pi * step / len(step) for step in steps]
        y, x = (one.flatten() for one in torch.meshgrid(*turns, indexing="ij"))
        gaps = [one[None] - one[:, None] for one in (y, x)]
        waves = torch.stack([made for gap in gaps for made in (gap.cos(), gap.sin())], -1)
        return self.offset(waves.to(like.dtype)).permute(2, 0, 1)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps (B, windows, tokens, D); grid is the number of windows along either axis."""

        def split(z: Tensor) -> Tensor:
            return z.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

        h = self.norm(x)
        h = h if self.local else h.transpose(1, 2)
        q, k, v = (split(one) for one in self.qkv(h).chunk(3, -1))
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(grid))
        y = self.out(made.transpose(-2, -3).flatten(-2))
        x = x + (y if self.local else y.transpose(1, 2))
        return x + self.mlp(x)


class MaskedTransformer(nn.Module):
    """Two frames, some of whose patches are hidden, to the second one whole or to the frame that
    follows it (Prithvi WxC, arXiv 2409.13598).

    Patches of both frames are tokens; blocks of attention within windows and across windows
    alternate, every other pair with windows that are shifted by half. One network reconstructs
    (lead 0) and forecasts (lead 1): an embedding of the lead is added to every token. What is made
    is a change of the second frame, or, where a patch is hidden, the patch. Shifting a field by
    whole windows shifts what is made of it.

    Args:
        channels: C.
        width: channels inside D.
        n_layers: pairs of blocks.
        patch: side of a patch in points.
        window: side of a window in patches.
        heads: of the attention.
    """

    def __init__(
        self,
        channels: int = 2,
        width: int = 48,
        n_layers: int = 2,
        patch: int = 2,
        window: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "width": width, "n_layers": n_layers, "heads": heads}
        for name, value in {**sizes, "patch": patch, "window": window}.items():
            check_positive(name, value)
        check_divisible("width", width, "heads", heads)
        self.channels, self.patch, self.window = channels, patch, window
        points, tokens = channels * patch**2, window**2
        self.stem = nn.Linear(2 * points, width)
        self.hidden = nn.Parameter(0.02 * torch.randn(points))
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.lead = nn.Parameter(0.02 * torch.randn(2, width))
        blocks = [WindowBlock(width, heads, n) for _ in range(n_layers) for n in (tokens, None)]
        self.layers = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, points))

    def grid(self, shape: tuple[int, int] | torch.Size) -> tuple[int, int]:
        """Returns the number of windows along either axis of a field (H, W).

        Raises:
            ConfigError: if whole windows do not fill it.
        """
        side = self.patch * self.window
        return (
            check_divisible("rows of the field", shape[0], "patch × window", side),
            check_divisible("columns of the field", shape[1], "patch × window", side),
        )

    def _tokens(self, frames: Tensor) -> Tensor:
        """Returns the patches (B, windows, tokens, C · patch²) of frames (B, C, H, W)."""
        rows, columns = self.grid(frames.shape[-2:])
        n, p = self.window, self.patch
        cut = frames.reshape(len(frames), self.channels, rows, n, p, columns, n, p)
        return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(5).flatten(3, 4).flatten(1, 2)

    def _frames(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of ``_tokens``."""
        (rows, columns), n, p = grid, self.window, self.patch
        cut = tokens.reshape(len(tokens), rows, columns, n, n, self.channels, p, p)
        frames = cut.permute(0, 5, 1, 3, 6, 2, 4, 7)
        return frames.reshape(len(tokens), self.channels, rows * n * p, columns * n * p)

    def _shifted(self, x: Tensor, grid: tuple[int, int], shift: int) -> Tensor:
        """Returns tokens (B, windows, tokens, D) that are moved along both axes, round the
        domain."""
        if not shift:
            return x
        (rows, columns), n = grid, self.window
        whole = x.reshape(len(x), rows, columns, n, n, -1).transpose(2, 3)
        moved = whole.reshape(len(x), rows * n, columns * n, -1).roll((shift, shift), (1, 2))
        cut = moved.reshape(len(x), rows, n, columns, n, -1).transpose(2, 3)
        return cut.reshape(x.shape)

    def draw_hidden(self, frames: Tensor, share: float) -> Tensor:
        """Returns which patches of frames (B, C, H, W) are hidden, bool (B, windows, tokens)."""
        rows, columns = self.grid(frames.shape[-2:])
        shape = (len(frames), rows * columns, self.window**2)
        return torch.rand(shape, device=frames.device) < share

    def make(
        self, before: Tensor, frames: Tensor, lead: int, hidden: Tensor | None = None
    ) -> Tensor:
        """Returns what follows two frames, or the second one whole (B, C, H, W).

        Args:
            before: first frames (B, C, H, W).
            frames: second ones.
            lead: 1 for the frame that follows, 0 for the second one itself.
            hidden: patches that are hidden in both, bool (B, windows, tokens); None for none.
        """
        grid = self.grid(frames.shape[-2:])
        first, second = self._tokens(before), self._tokens(frames)
        if hidden is not None:
            first, second = (
                torch.where(hidden[..., None], self.hidden.to(one.dtype), one)
                for one in (first, second)
            )
        x = self.stem(torch.cat([first, second], -1)) + self.place + self.lead[lead]
        for i, layer in enumerate(self.layers):
            shift = self.window // 2 if i % 4 > 1 else 0
            x = self._shifted(layer(self._shifted(x, grid, -shift), grid), grid, shift)
        made = self.head(x)
        kept = second if hidden is None else second.masked_fill(hidden[..., None], 0.0)
        return self._frames(kept + made, grid)

    def masked_pairs(self, video: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Returns what is made with patches hidden and the truth, each (2, B, C, H, W): the second
        of two frames and the one after, at a time that is drawn for every video.

        Args:
            video: (B, L, C, H, W), L ≥ 3.
            share: of the patches that is hidden.

        Raises:
            ConfigError: for fewer frames.
        """
        if video.shape[1] < 3:
            raise ConfigError(
                "the masked objective needs three frames: raise data.context or data.horizon"
            )
        rows = torch.arange(len(video), device=video.device)
        first = torch.randint(video.shape[1] - 2, (len(video),), device=video.device)
        before, frames, after = (video[rows, first + n] for n in (0, 1, 2))
        hidden = self.draw_hidden(frames, share)
        made = [self.make(before, frames, lead, hidden) for lead in (0, 1)]
        return torch.stack(made), torch.stack([frames, after])

    def forward(
        self, frames: Tensor, states: list[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Predicts the next frame of every frame, from it and the one before it.

        Args:
            frames: (B, L, C, H, W), or the next ones of a sequence.
            states: after the frames before; None at the start, where the first stands for both.

        Returns:
            Predictions of the same shape, and the states.
        """
        last = frames[:, :1] if states is None else states[0]["last"]
        before = torch.cat([last, frames[:, :-1]], 1)
        made = self.make(before.flatten(0, 1), frames.flatten(0, 1), 1)
        return made.unflatten(0, frames.shape[:2]), [{"last": frames[:, -1:]}]

    def rollout(self, context: Tensor, count: int) -> Iterator[Tensor]:
        """Yields the frames after a context (B, L, C, H, W) one by one, each fed back."""
        before, frame = context[:, -2:][:, 0], context[:, -1]
        for _ in range(count):
            before, frame = frame, self.make(before, frame, 1)
            yield frame
