"""TCNCA: Mega's gated chunked attention over a dilated convolutional network."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.mixers._attention import positions_in_pack
from longseq.core.mixers._submodules import conv_weights, holding
from longseq.core.mixers.base import State, register_mixer
from longseq.core.mixers.mega import Mega


class DilatedConvolutions(nn.Module):
    """A temporal convolutional network: causal depthwise layers whose reach grows by powers.

        x ← x + SiLU(Σ_k w_k x_{t - k b^i} + c),   i = 0 … depth - 1

    Args:
        width: channels D.
        kernel: taps K of a layer.
        base: b; layer i has taps b^i positions apart.
        depth: number of layers.
    """

    def __init__(self, width: int, kernel: int, base: int, depth: int) -> None:
        super().__init__()
        self.dilations = [base**i for i in range(depth)]
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, kernel, groups=width, dilation=d) for d in self.dilations
        )
        self.reaches = [(kernel - 1) * d for d in self.dilations]

    def forward(self, x: Tensor, past: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the last layer's output (B, L, D), and all layers' last inputs.

        Args:
            x: (B, L, D).
            past: every layer's inputs before position 0, one after the other (B, Σ reaches, D);
                zeros before a sequence.
            resets: bool (B, L), true where a new sequence begins; or None.
        """
        length, kept = x.shape[1], []
        own = None
        if resets is not None:
            far = torch.full((len(x),), max(self.reaches), device=x.device)
            own = positions_in_pack(resets, far, length)
        for layer, reach, before in zip(self.layers, self.reaches, past.split(self.reaches, 1)):
            whole = torch.cat([before.to(x.dtype), x], 1)
            y = layer(whole.mT).mT if own is None else _packed(layer, whole, own)
            last = whole[:, length:]
            if own is not None:  # what a later sequence must not see is as if it had not been
                place = torch.arange(reach, 0, -1, device=x.device)
                last = torch.where((place <= own[:, -1:] + 1).unsqueeze(-1), last, 0)
            kept.append(last)
            x = x + F.silu(y)
        return x, torch.cat(kept, 1).to(past.dtype)


@register_mixer("tcnca")
class TCNCA(Mega):
    """Temporal convolution with chunked attention (arXiv 2312.05605, section 3): Mega with a
    dilated convolutional network in place of its moving average.

    Reach grows with the power of the depth at a cost that grows with the depth, and nothing is
    computed one step after another. The state is the layers' last inputs and the keys and values
    of the chunk so far.

    Args:
        d_model: width D.
        d_attention: width z of queries and keys.
        d_value: width of values; None for 2 D.
        kernel: taps of a layer.
        base: how much farther apart the taps of each layer are than those of the layer below.
        layers: of the network.
        window: positions in a chunk.

    Raises:
        ConfigError: if a value is out of range.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        d_model: int,
        d_attention: int = 64,
        d_value: int | None = None,
        kernel: int = 5,
        base: int = 4,
        layers: int = 4,
        window: int = 128,
    ) -> None:
        super().__init__(d_model, d_attention, d_value, 1, window)
        del self.ema
        check_positive("kernel", kernel)
        check_positive("base", base)
        check_positive("layers", layers)
        self.tcn = DilatedConvolutions(d_model, kernel, base, layers)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the layers' last inputs (B, Σ reaches, D), and keys, values and their number as
        ``Mega`` does."""
        device, dtype = self._where(device, dtype)
        past = torch.zeros(batch, sum(self.tcn.reaches), self.d_model, device=device, dtype=dtype)
        return {"past": past, **self._chunk_state(batch, device, dtype)}

    def _average(self, x: Tensor, state: State, resets: Tensor | None) -> tuple[Tensor, State]:
        averaged, past = self.tcn(x, state["past"], resets)
        return averaged, {"past": past}


def _packed(layer: nn.Module, whole: Tensor, own: Tensor) -> Tensor:
    """Returns a layer's output (B, L, D) where taps end at the sequences' starts.

    Args:
        layer: of the network.
        whole: its inputs with those before (B, reach + L, D).
        own: earlier positions of its own sequence that each one may see (B, L).
    """
    conv = holding(layer, nn.Conv1d, "a layer of tcn")
    taps, bias = conv_weights(conv, "a layer of tcn")
    assert bias is not None
    dilation, length = conv.dilation[0], own.shape[1]
    total = bias.expand(len(whole), length, -1)
    for k in range(taps.shape[1]):
        lag = (taps.shape[1] - 1 - k) * dilation
        lo = whole.shape[1] - length - lag
        part = whole[:, lo : lo + length] * taps[:, k]
        total = total + torch.where((own >= lag).unsqueeze(-1), part, 0)
    return total
