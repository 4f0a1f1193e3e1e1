"""A masked DNA language model, equivariant under the reverse complement if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone, Layer
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers.slstm import SLSTM
from longseq.core.norms import normed
from longseq.genomics.data.tokenizer import PADDED_VOCAB_SIZE, A, C, G, T

Symmetry = Literal["none", "ph", "ps", "ps_swapped", "ps_heads"]
Directions = Literal["mixer", "blocks", "alternating"]


class MaskedDNAModel(nn.Module):
    """Predicts every base from all others, with any mixers, usually bidirectional ones.

    With B the backbone, W the head, RC the reverse complement of a sequence and rc its effect on
    logits (positions turned round, A with T and C with G exchanged), arXiv 2403.03234:

    - "none": f(x) = W B(x);
    - "ph" (section 4.2): as "none" in training; then f(x) = (W B(x) + rc W B(RC x)) / 2;
    - "ps" (section 4.1): f(x) = W B(x) + rc W B(RC x), in training too. The published wrapper's two
      halves of the channels never meet before the head, so that is what it computes;
    - "ps_swapped": the same where every other layer, beginning with the first, reads its input with
      positions and channels turned round. So do published checkpoints, whose fused norm takes the
      halves crosswise (``fused_add_norm``);
    - "ps_heads": as "ps", but when RC x is read the heads of every sLSTM are in reverse order from
      their norm on. So does published DNA-xLSTM, which is no longer equivariant by that.

    But for "none" and "ps_heads", f(RC x) = rc f(x), bit for bit up to the order of one sum.

    What makes both sides of a base known (``directions``; L is a layer with its residual branches):

    - "mixer": the mixers themselves, which are bidirectional;
    - "blocks": x ← L(x) + flip(L(flip(x))), with a causal mixer (DNA-xLSTM, arXiv 2411.04165);
    - "alternating": causal layers in turn, the first from the end, the second from the begin.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name or a pattern of names, see ``Backbone``.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D, or one for each mixer; 0 for none.
        norm: "rms", "layer" or "layer_nobias".
        dropout: on residual branches.
        tie_embeddings: whether the head shares the embedding's weights.
        symmetry: see above.
        vocab_size: tokens V, padding included.
        directions: see above.
        mlp: "gelu" or "geglu", see ``Backbone``.
        mlp_kwargs: hyper-parameters of the MLPs, see ``Backbone``.

    Raises:
        ConfigError: for an unknown symmetry or direction, or mixers that do not fit them.
    """

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: str | Sequence[str | Sequence[Any]] = "bidirectional",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float | Mapping[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias"] = "rms",
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        symmetry: Symmetry = "none",
        vocab_size: int = PADDED_VOCAB_SIZE,
        directions: Directions = "mixer",
        mlp: Literal["gelu", "geglu"] = "gelu",
        mlp_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, given, known in (
            ("symmetry", symmetry, get_args(Symmetry)),
            ("directions", directions, get_args(Directions)),
        ):
            if given not in known:
                raise ConfigError(f"no {name} named {given!r}; {did_you_mean(given, known)}")
        self.symmetry, self.directions = symmetry, directions
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.backbone = Backbone(
            d_model,
            n_layers,
            mixer,
            mixer_kwargs,
            mlp_ratio,
            norm,
            dropout,
            mlp,
            mlp_kwargs=mlp_kwargs,
        )
        layers = self.backbone.residual_layers()
        if directions != "mixer" and not self.backbone.causal:
            raise ConfigError(f"directions {directions!r} need causal mixers, got {mixer!r}")
        if symmetry == "ps_heads" and not all(isinstance(one.mixer, SLSTM) for one in layers):
            raise ConfigError(f"symmetry 'ps_heads' is of the mixer 'slstm', got {mixer!r}")
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            self.lm_head.weight = self.embedding.weight
        complement = torch.arange(vocab_size)
        complement[[A, C, G, T]] = torch.tensor([T, G, C, A])
        self.complement: Tensor
        self.register_buffer("complement", complement, persistent=False)

    @property
    def symmetric(self) -> bool:
        """Whether f(RC x) = rc f(x), outside training."""
        return self.symmetry not in ("none", "ps_heads")

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns logits (B, L, V) of token ids (B, L)."""
        if self.symmetry == "none" or (self.symmetry == "ph" and self.training):
            return self.lm_head(self._streams(input_ids))
        other = self.complement[input_ids].flip(1)
        ahead, back = self._streams(torch.cat([input_ids, other])).chunk(2)
        turned = self.lm_head(back).flip(1)[..., self.complement]
        total = self.lm_head(ahead) + turned
        return total / 2 if self.symmetry == "ph" else total

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Returns the last layer's output (B, L, D): the vector of each base given all others, and
        itself. But for the symmetry "none" it is the mean of both strands'; where the model is
        ``symmetric``, a base has the same vector whichever is read.

        Args:
            input_ids: (B, L).
        """
        if self.symmetry == "none":
            return self._streams(input_ids)
        other = self.complement[input_ids].flip(1)
        ahead, back = self._streams(torch.cat([input_ids, other])).chunk(2)
        return (ahead + back.flip(1)) / 2

    def _streams(self, input_ids: Tensor) -> Tensor:
        """Returns the normalised output (B, L, D); with swapped halves, of (B, B) rows as the head
        meets them."""
        x = self.embedding(input_ids)
        layers = self.backbone.residual_layers()
        swapped = self.symmetry == "ps_swapped"
        for i, layer in enumerate(layers):
            turn = swapped and i % 2 == 0
            x = self._layer(i, layer, x.flip(1, 2) if turn else x)
            x = x.flip(1, 2) if turn else x
        if swapped and len(layers) % 2:
            ahead, back = x.flip(1, 2).chunk(2)
            x = torch.cat([back, ahead])
        return normed(self.backbone.norm_f, x)

    def _layer(self, index: int, layer: Layer, x: Tensor) -> Tensor:
        """Returns a layer's output (B, L, D), from one end or from both."""
        if self.directions == "mixer":
            return self._run(layer, x)
        if self.directions == "alternating":
            return self._run(layer, x) if index % 2 else self._run(layer, x.flip(1)).flip(1)
        return self._run(layer, x) + self._run(layer, x.flip(1)).flip(1)

    def _run(self, layer: Layer, x: Tensor) -> Tensor:
        if self.symmetry != "ps_heads":
            return layer(x, None, None)[0]
        ahead, back = x.chunk(2)
        ahead = layer(ahead, None, None)[0]
        norm = cast(SLSTM, layer.mixer).group_norm
        hook = norm.register_forward_pre_hook(_reverse_heads)
        try:
            return torch.cat([ahead, layer(back, None, None)[0]])
        finally:
            hook.remove()


def _reverse_heads(norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Returns the input of an sLSTM's head norm with the heads in reverse order."""
    heads = cast(int, norm.n_heads)
    return inputs[0].unflatten(-1, (heads, -1)).flip(-2).flatten(-2)
