"""Published language-model layouts: exact parameter counts, both directions, live parity of the
xLSTM stack.

The live test runs where LONGSEQ_UPSTREAM_XLSTM names a checkout of NX-AI/xlstm.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.backbone import Backbone
from longseq.core.checkpoints import LAYOUTS, load_published, save_published
from longseq.core.errors import ConfigError, DataError

CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_XLSTM")


class Model(nn.Module):
    """Embedding, backbone and head, as a language model has them."""

    def __init__(self, vocab: int, d_model: int, tied: bool, **backbone: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d_model)
        self.backbone = Backbone(d_model, **backbone)
        self.lm_head = nn.Linear(d_model, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.backbone(self.embedding(tokens))[0])


def xlstm(mixer: list[str], d_model: int = 128) -> Model:
    ratio = {"slstm": 1.3} if "slstm" in mixer else 0.0
    return Model(
        16,
        d_model,
        False,
        n_layers=4,
        mixer=mixer,
        mlp_ratio=ratio,
        mlp="geglu",
        norm="layer_nobias",
    )


MODELS = {
    "mamba": lambda: Model(16, 32, True, n_layers=2, mixer="mamba"),
    "hyenadna": lambda: Model(
        16,
        32,
        False,
        n_layers=2,
        mixer="hyena",
        mixer_kwargs={"l_max": 34},
        mlp_ratio=4.0,
        norm="layer",
    ),
    "xlstm": lambda: xlstm(["mlstm", "slstm"], 32),
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def disturb(model: nn.Module) -> None:
    """Moves every parameter away from its initial value, norms included."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_parameter_counts_are_the_published_ones() -> None:
    assert count(xlstm(["mlstm"])) == 442_016  # DNA-xLSTM, width 128, 4 layers
    assert count(xlstm(["slstm"])) == 436_352
    hyena = Model(
        16,
        128,
        True,
        n_layers=2,
        mixer="hyena",
        mixer_kwargs={"l_max": 1026},
        mlp_ratio=4.0,
        norm="layer",
    )
    assert count(hyena) == 436_096  # HyenaDNA tiny-1k


@pytest.mark.parametrize("name", MODELS)
def test_a_layout_written_is_read_back(name: str, tmp_path: Path) -> None:
    source, copy = MODELS[name](), MODELS[name]()
    disturb(source)
    save_published(tmp_path / "weights.safetensors", source, name)
    load_published(copy, tmp_path / "weights.safetensors", name)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(copy.state_dict()[key], value, rtol=0, atol=1e-7)


STACK = "xlstm_block_stack."
NAMES = {
    "mamba": [
        "backbone.embedding.weight",
        "backbone.layers.1.norm.weight",
        "backbone.layers.0.mixer.A_log",
        "backbone.norm_f.weight",
        "lm_head.weight",
    ],
    "hyenadna": [
        "hyena.backbone.embeddings.word_embeddings.weight",
        "hyena.backbone.layers.1.norm2.bias",
        "hyena.backbone.layers.0.mixer.filter_fn.implicit_filter.6.weight",
        "hyena.backbone.layers.0.mlp.fc1.weight",
        "hyena.backbone.ln_f.weight",
        "lm_head.weight",
    ],
    "xlstm": [
        "token_embedding.weight",
        STACK + "blocks.0.xlstm_norm.weight",
        STACK + "blocks.0.xlstm.mlstm_cell.outnorm.weight",
        STACK + "blocks.1.ffn_norm.weight",
        STACK + "blocks.1.ffn.proj_up.weight",
        STACK + "blocks.1.xlstm.slstm_cell._recurrent_kernel_",
        STACK + "post_blocks_norm.weight",
        "lm_head.weight",
    ],
}


@pytest.mark.parametrize(("name", "keys"), NAMES.items())
def test_published_names(name: str, keys: list[str]) -> None:
    written = LAYOUTS[name].to_published(MODELS[name]().state_dict())
    assert [key for key in keys if key not in written] == []
    assert len(written) == len(MODELS[name]().state_dict())


def test_recurrent_weights_of_the_cuda_backend_are_turned() -> None:
    model = xlstm(["slstm"], 32)
    disturb(model)
    published = LAYOUTS["xlstm"].to_published(model.state_dict())
    cuda = dict(published)
    for key, value in published.items():
        if key.endswith("_recurrent_kernel_"):
            cuda[key] = value.transpose(1, 2).contiguous()
            bias = key.replace("_recurrent_kernel_", "_bias_")
            cuda[bias] = published[bias].view(4, 4, 8).transpose(0, 1).flatten()
    read = LAYOUTS["xlstm"].from_published(
        {"model.backbone." + key: value for key, value in cuda.items()}
    )
    for key, value in model.state_dict().items():
        torch.testing.assert_close(read[key], value, rtol=0, atol=1e-7)


def test_wrong_files_and_names_are_refused(tmp_path: Path) -> None:
    model = MODELS["mamba"]()
    with pytest.raises(ConfigError, match="did you mean 'mamba'"):
        load_published(model, tmp_path / "x.safetensors", "mambo")
    torch.save({"weights": [1, 2]}, tmp_path / "x.pt")
    with pytest.raises(DataError, match="holds no state dict"):
        load_published(model, tmp_path / "x.pt", "mamba")
    save_published(tmp_path / "x.safetensors", MODELS["hyenadna"](), "hyenadna")
    with pytest.raises(DataError, match="missing"):
        load_published(model, tmp_path / "x.safetensors", "mamba")


@pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_XLSTM names no checkout of NX-AI/xlstm"
)
@pytest.mark.parametrize("slstm_at", [[], [1], [0, 1, 2, 3]])
def test_the_xlstm_stack_agrees_with_the_published_one(slstm_at: list[int], tmp_path: Path) -> None:
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    lm = importlib.import_module("xlstm.xlstm_lm_model")
    mblock = importlib.import_module("xlstm.blocks.mlstm.block")
    sblock = importlib.import_module("xlstm.blocks.slstm.block")
    mlayer = importlib.import_module("xlstm.blocks.mlstm.layer")
    slayer = importlib.import_module("xlstm.blocks.slstm.layer")
    forward = importlib.import_module("xlstm.components.feedforward")
    every = len(slstm_at) == 4
    config = lm.xLSTMLMModelConfig(
        mlstm_block=None if every else mblock.mLSTMBlockConfig(mlstm=mlayer.mLSTMLayerConfig()),
        slstm_block=sblock.sLSTMBlockConfig(
            slstm=slayer.sLSTMLayerConfig(backend="vanilla"),
            feedforward=forward.FeedForwardConfig(),
        )
        if slstm_at
        else None,
        num_blocks=4,
        embedding_dim=64,
        vocab_size=16,
        context_length=45,
        slstm_at=slstm_at,
    )
    theirs = lm.xLSTMLMModel(config)
    theirs.reset_parameters()
    disturb(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = xlstm(["slstm" if i in slstm_at else "mlstm" for i in range(4)], 64)
    load_published(ours, tmp_path / "theirs.pt", "xlstm")
    tokens = torch.randint(0, 16, (2, 45), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (ours(tokens) - theirs(tokens)).abs().max().item()
    # The log-gate sums of the published form lose digits in float32, four layers deep.
    assert difference < 1e-4, difference
    print(f"xLSTM stack, sLSTM at {slstm_at}: largest logit difference {difference:.1e}")
