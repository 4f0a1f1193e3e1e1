"""Published DNA-xLSTM: read under its names, its stack written out by hand, and live parity.

The live test runs where LONGSEQ_UPSTREAM_DNA_XLSTM names a checkout of ml-jku/DNA-xLSTM.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core.checkpoints.layouts import LAYOUTS
from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.genomics.masked_task import MaskedLanguageModel
from longseq.genomics.published import read_published
from longseq.genomics.scorers import read_task
from longseq.genomics.task import CausalLanguageModel

CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_DNA_XLSTM")
COMPLEMENT = torch.tensor([*range(7), 10, 9, 8, 7, 11])
SHAPE: dict[str, Any] = {
    "d_model": 16,
    "n_layers": 3,
    "mlp": "geglu",
    "norm": "layer_nobias",
    "tie_embeddings": False,
    "vocab_size": 12,
}
SLSTM = {"mixer": ["slstm"], "mlp_ratio": {"slstm": 1.53}, "mlp_kwargs": {"multiple_of": 8}}
MIXED = {**SLSTM, "mixer": ["mlstm", "slstm", "mlstm"], "mixer_kwargs": {"mlstm": {"bias": True}}}
ROTARY = {"mixer": ["mlstm"], "mixer_kwargs": {"mlstm": {"bias": True, "rotary_base": 5e5}}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal": (MIXED, {"bidirectional": False, "s_lstm_at": [1]}),
    "blocks": (MIXED, {"bidirectional": True, "s_lstm_at": [1]}),
    "alternating": (
        {"mixer": ["mlstm"], "mixer_kwargs": {"mlstm": {"proj_factor": 2.0, "round_up_to": 8}}},
        {"bidirectional": True, "s_lstm_at": [], "bidirectional_alternating": True},
    ),
    "rotary": (
        ROTARY,
        {"bidirectional": True, "s_lstm_at": [], "m_position_embeddings": True},
    ),
    "ps_heads": (SLSTM, {"bidirectional": True, "s_lstm_at": [0, 1, 2], "rcps": True}),
}


def disturb(module: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


def published(name: str, folder: Path) -> Any:
    """Writes a model as DNA-xLSTM's training leaves it, and returns ours."""
    settings, config = CASES[name]
    torch.manual_seed(0)
    if name == "causal":
        task: Any = CausalLanguageModel(**SHAPE, **settings)
    else:
        symmetry: Any = "ps_heads" if name == "ps_heads" else "none"
        turns: Any = "alternating" if name == "alternating" else "blocks"
        task = MaskedLanguageModel(**SHAPE, **settings, directions=turns, symmetry=symmetry)
    disturb(task)
    state = LAYOUTS["xlstm"].to_published(task.model.state_dict())
    if name == "ps_heads":
        for part in ("xlstm_norm.", "xlstm.", "ffn_norm.", "ffn.", "post_blocks_norm."):
            state = {key.replace(f".{part}", f".{part}submodule."): v for key, v in state.items()}
        state["token_embedding.embedding.weight"] = state.pop("token_embedding.weight")
        state["lm_head.lm_head.weight"] = state.pop("lm_head.weight")
        state["lm_head.complement_map"] = state["token_embedding.complement_map"] = COMPLEMENT
    weights = folder / "checkpoints" / "test" / "loss.ckpt"
    weights.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"model.backbone.{k}": v for k, v in state.items()}}, weights)
    config = {"rcps": False, "max_length": 64, "n_layer": 3, "d_model": 16, **config}
    (folder / "model_config.json").write_text(json.dumps({"config": config}))
    return task.eval()


def by_hand(task: Any, ids: Tensor, name: str) -> Tensor:
    """The published stack: blocks with their residuals run both ways; for PS, doubled channels."""
    model = task.model

    def rc(x: Tensor) -> Tensor:
        return x.flip(-2, -1)

    def block(layer: Any, x: Tensor, back: bool = False) -> Tensor:
        weight = layer.mixer.group_norm.weight if back else None
        old = None if weight is None else weight.data.clone()
        if weight is not None:
            weight.data = old.view(4, -1).flip(0).flatten()
        y = layer.mixer(layer.norm1(x))[0]
        x = x + (y.unflatten(-1, (4, -1)).flip(-2).flatten(-2) if back else y)
        x = x if layer.mlp is None else x + layer.mlp(layer.norm2(x))
        if weight is not None:
            weight.data = old
        return x

    def whole(layer: Any, x: Tensor) -> Tensor:
        if name != "ps_heads":
            return block(layer, x)
        return torch.cat([block(layer, x[..., :16]), rc(block(layer, rc(x[..., 16:]), True))], -1)

    x = model.embedding(ids)
    if name == "ps_heads":
        x = torch.cat([x, rc(model.embedding(COMPLEMENT[ids].flip(-1)))], -1)
    for i, layer in enumerate(model.backbone.residual_layers()):
        if name == "causal" or (name == "alternating" and i % 2):
            x = whole(layer, x)
        elif name == "alternating":
            x = whole(layer, x.flip(1)).flip(1)
        else:
            x = whole(layer, x) + whole(layer, x.flip(1)).flip(1)
    norm, weight = model.backbone.norm_f, model.lm_head.weight
    if name != "ps_heads":
        return norm(x) @ weight.T
    back = rc(norm(rc(x[..., 16:]))).flip(-1)
    return norm(x[..., :16]) @ weight.T + back @ weight[COMPLEMENT].T


@pytest.mark.parametrize("name", CASES)
def test_it_is_read_with_its_settings_and_equal(name, tmp_path) -> None:
    source = published(name, tmp_path)
    out = tmp_path / "ours.safetensors"
    assert main(["genomics", "import", str(tmp_path), "--out", str(out)]) == 0
    task: Any = read_task(out)
    assert type(task) is type(source) and task.facts["length"] == 64
    for length in (1, 21):
        ids = torch.randint(7, 12, (2, length))
        with torch.no_grad():
            said = task(ids)[0] if name == "causal" else task(ids)
            wanted = by_hand(source, ids, name)
        torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-5)
    assert said.shape[-1] == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"s_position_embeddings": True}, "absolute positions"),
        ({"m_backend_bidirectional": True}, "both ways"),
        ({"m_conv1d_causal": False}, "causal convolutions"),
        ({"rcps": True}, "equivariant mLSTM"),
        ({"s_lstm_at": [0]}, "s_lstm_at"),
        ({"n_layer": 4}, "n_layer 4"),
    ],
)
def test_what_ours_does_not_have_is_refused_by_name(change, words, tmp_path) -> None:
    published("blocks", tmp_path)
    file = tmp_path / "model_config.json"
    config = json.loads(file.read_text())["config"]
    file.write_text(json.dumps({"config": {**config, **change}}))
    with pytest.raises(DataError, match=words):
        read_published(tmp_path)


def test_settings_are_needed_and_weights_complete(tmp_path) -> None:
    published("blocks", tmp_path)
    (tmp_path / "model_config.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        read_published(tmp_path)
    (tmp_path / "model_config.json").unlink()
    with pytest.raises(DataError, match="bidirectional, s_lstm_at, rcps"):
        read_published(tmp_path)
    published("causal", tmp_path / "b")
    weights = tmp_path / "b" / "checkpoints" / "test" / "loss.ckpt"
    state = torch.load(weights)["state_dict"]
    state.pop("model.backbone.xlstm_block_stack.blocks.2.xlstm.proj_down.weight")
    torch.save({"state_dict": state}, weights)
    with pytest.raises(DataError, match="missing"):
        read_published(tmp_path / "b")


def _no_folders(**_: Any) -> list[str]:
    return ["/include"]


@pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_DNA_XLSTM names no checkout of ml-jku/DNA-xLSTM"
)
@pytest.mark.parametrize("rcps", [False, True])
@pytest.mark.parametrize("turns", ["causal", "blocks", "alternating"])
@pytest.mark.parametrize("slstm_at", [[], ["rotary"], [1], [0, 1, 2, 3]])
def test_logits_agree_with_the_published_code(slstm_at, turns, rcps, tmp_path, monkeypatch) -> None:
    rotary = slstm_at == ["rotary"]
    slstm_at = [] if rotary else slstm_at
    if rcps and (len(slstm_at) < 4 or turns == "causal"):
        pytest.skip("the published code has no equivariant mLSTM; ours refuses a causal one")
    monkeypatch.syspath_prepend(str(Path(str(CHECKOUT)) / "models" / "dna_xlstm"))
    for name in [name for name in sys.modules if name.split(".")[0] == "xlstm"]:
        monkeypatch.delitem(sys.modules, name)
    # Its import asks torch for CUDA's folders in the way of an older torch, and sets the variable.
    monkeypatch.setenv("CUDA_LIB", "")
    monkeypatch.setattr("torch.utils.cpp_extension.include_paths", _no_folders)
    lm = importlib.import_module("xlstm.xlstm_lm_model")
    mblock = importlib.import_module("xlstm.blocks.mlstm.block")
    sblock = importlib.import_module("xlstm.blocks.slstm.block")
    mlayer = importlib.import_module("xlstm.blocks.mlstm.layer")
    slayer = importlib.import_module("xlstm.blocks.slstm.layer")
    forward = importlib.import_module("xlstm.components.feedforward")
    config = {
        "bidirectional": turns != "causal",
        "bidirectional_alternating": turns == "alternating",
        "rcps": rcps,
        "m_position_embeddings": rotary,
    }
    made = lm.xLSTMLMModelConfig(
        mlstm_block=mblock.mLSTMBlockConfig(
            mlstm=mlayer.mLSTMLayerConfig(round_proj_up_dim_up=False)
        ),
        slstm_block=sblock.sLSTMBlockConfig(
            slstm=slayer.sLSTMLayerConfig(backend="vanilla"),
            feedforward=forward.FeedForwardConfig(
                proj_factor=1.1, round_proj_up_dim_up=False, round_proj_up_to_multiple_of=8
            ),
            rcps=rcps,
        )
        if slstm_at
        else None,
        num_blocks=4,
        embedding_dim=64,
        vocab_size=12,
        context_length=45,
        slstm_at=slstm_at,
        bias=True,
        s_position_embeddings=False,
        complement_map={i: int(c) for i, c in enumerate(COMPLEMENT)},
        **config,
    )
    if rotary:  # it turns in float32 what is float64 here
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.manual_seed(0)
    theirs = lm.xLSTMLMModel(made)
    theirs.reset_parameters()
    disturb(theirs)
    theirs.eval()
    state = {f"model.backbone.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    (tmp_path / "model_config.json").write_text(json.dumps({**config, "s_lstm_at": slstm_at}))
    task: Any = read_published(tmp_path)
    ids = torch.randint(7, 12, (2, 45), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = task.double()(ids)
        said = said if turns != "causal" else said[0]
        difference = (said - theirs.double()(ids)).abs().max().item()
    which = f"sLSTM at {slstm_at}, {turns}, rcps {rcps}, rotary {rotary}"
    print(f"{which}: largest difference {difference:.1e}")
    assert difference < 1e-5 and said.abs().max() > 1
