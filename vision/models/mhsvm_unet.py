r"""The segmenter of MHS-VM (Ji 2024, arXiv 2406.05992): its encoder, and a decoder of equal blocks.

With s_i the input of stage i of the encoder and y the result of the last one,

  z_n = blocks(y);   z_i = blocks(expand_2(z_{i+1} + s_{i+1}));   logits = conv(expand_4(z_0))

where expand_p makes p² positions of every one, by a linear map and a norm. Published files load by
name; those of one class become two, the first with a logit of 0, so that the softmax is the
published code's sigmoid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.vision.models.layers import path_rates
from longseq.vision.models.mhsvm import MHSVM, RouteBlock
from longseq.vision.models.pyramid import check_stages, initialise
from longseq.vision.models.serpent import mirrored


class PatchExpand(nn.Module):
    """Makes p² positions of one, (B, H, W, C) to (B, p H, p W, C').

    Args:
        width: channels C.
        steps: p.
        outs: channels C'; the linear map has p² C' of them.
    """

    def __init__(self, width: int, steps: int, outs: int) -> None:
        super().__init__()
        self.steps = steps
        self.expand = nn.Linear(width, steps**2 * outs, bias=False)
        self.norm = nn.LayerNorm(outs)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C)."""
        parts = self.expand(x).unflatten(3, (self.steps, self.steps, -1))
        return self.norm(parts.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


class Rise(nn.Module):
    """One level of the decoder: the step up, then blocks; (B, H, W, C).

    Args:
        upsample: to this level's resolution; None at the lowest.
        blocks: of this level.
    """

    def __init__(self, upsample: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C) of the level below."""
        return self.blocks(x if self.upsample is None else self.upsample(x))


class MHSVMUNet(MHSVM):
    """MHS-VM as it was published, images (B, C, H, W) to logits of every pixel (B, K, H, W).

    Images of other sides than multiples of the lowest level's step are mirrored, and cut again.

    Args:
        num_classes: K.
        in_chans: channels of the images.
        dims: width of every stage, each twice the one before.
        depths: blocks of every stage.
        depths_decoder: blocks of the decoder's levels from the lowest; 2 each, 1 of the last, if
            None.
        d_state: states per channel of the scans.
        n_heads: see ``MultiHeadScan``.
        threshold: see ``fuse_routes``; 0.5 for the published weights of ISIC 2018, 0 of 2017.
        drop_path: highest rate of stochastic depth.
    """

    head_key = "final_conv"
    head_norms = ()
    not_read = (".scanning.seq2seq_engine.", ".x_ssproj_W")

    def __init__(
        self,
        num_classes: int = 2,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 2, 2),
        depths_decoder: Sequence[int] | None = None,
        d_state: int = 16,
        n_heads: int = 4,
        threshold: float = 0.5,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__(0, in_chans, dims, depths, d_state, n_heads, threshold, drop_path)
        del self.norm, self.head
        self.num_classes = check_positive("num_classes", num_classes)
        up = [2] * (len(dims) - 1) + [1] if depths_decoder is None else list(depths_decoder)
        check_stages(dims, up)
        if any(b != 2 * a for a, b in itertools.pairwise(dims)) or dims[0] % 4:
            raise ConfigError(
                f"dims must double from stage to stage, from a multiple of 4, got {tuple(dims)}"
            )
        rates = iter(path_rates(drop_path, sum(up))[::-1])
        self.layers_up = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(reversed(dims), up)):
            blocks = [
                RouteBlock(width, d_state, n_heads, threshold, next(rates)) for _ in range(depth)
            ]
            self.layers_up.append(Rise(PatchExpand(2 * width, 2, width) if i else None, blocks))
        self.final_up = PatchExpand(dims[0], 4, dims[0] // 4)
        self.final_conv = nn.Conv2d(dims[0] // 4, num_classes, 1)
        self.apply(initialise)

    def converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes two classes of a published file's one, where this model has two."""
        weight = state.get("final_conv.weight")
        if weight is None or len(weight) != 1 or self.num_classes != 2:
            return state
        both = {
            key: torch.cat([torch.zeros_like(state[key]), state[key]])
            for key in ("final_conv.weight", "final_conv.bias")
            if key in state
        }
        return {**state, **both}

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        height, width = x.shape[2:]
        x = mirrored(x, self.reductions[-1])
        self.check_images(x)
        y, starts = self.patch_embed(x), []
        for layer in self.layers:
            starts.append(y)
            _, y = layer(y)
        for i, level in enumerate(self.layers_up):
            y = level(y + starts[-i] if i else y)
        y = self.final_up(y).permute(0, 3, 1, 2)
        return self.final_conv(y)[..., :height, :width]
