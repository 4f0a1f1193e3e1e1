"""Folders as their authors wrote them, beside those that transformers writes: settings of earlier
code, nulls, models without a head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longseq.core import LanguageModel
from longseq.core.errors import ConfigError, DataError

# Settings of NX-AI/xLSTM-7b, its sizes made small.
XLSTM: dict[str, Any] = {
    "add_embedding_dropout": False,
    "add_forward_backend_padding": False,
    "add_out_norm": True,
    "add_post_blocks_norm": True,
    "add_post_norm": False,
    "add_qk_norm": False,
    "autocast_kernel_dtype": "bfloat16",
    "cell_norm_eps": 1e-6,
    "chunk_size": 64,
    "embedding_dim": 32,
    "eps": 1e-6,
    "ffn_proj_factor": 2.667,
    "ffn_round_up_to_multiple_of": 8,
    "forward_backend_name": "chunkwise--triton_limit_chunk",
    "gate_soft_cap": 15.0,
    "head_dim": 8,
    "igate_bias_init_range": -10.0,
    "inference_state_dtype": "float32",
    "model_type": "xlstm",
    "norm_eps": 1e-6,
    "norm_reduction_force_float32": True,
    "num_blocks": 2,
    "num_heads": 4,
    "output_logit_soft_cap": 30.0,
    "qk_dim_factor": 0.5,
    "tie_word_embeddings": False,
    "use_bias": False,
    "v_dim_factor": 1.0,
    "vocab_size": 96,
    "weight_mode": "single",
}
IDS = torch.tensor([[1, 2, 3, 5, 8]])


def folder_of(model: LanguageModel, folder: Path, family: str) -> Path:
    model.save_pretrained(folder, family=family)
    return folder


def test_settings_of_earlier_code_do_not_matter(tmp_path: Path) -> None:
    ours = LanguageModel(
        96,
        32,
        2,
        "mlstm_large",
        {"n_heads": 4, "norm_eps": 1e-6},
        mlp_ratio=2.667,
        norm_eps=1e-6,
        tie_embeddings=False,
        mlp="swiglu",
        mlp_kwargs={"d_hidden": 88, "multiple_of": 1},
        logit_soft_cap=30.0,
    ).eval()
    ours.published = XLSTM
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["add_qk_norm"] is False
    read = LanguageModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS)[0], ours(IDS)[0])


def test_a_null_is_as_many_groups_as_heads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "bamba",
                "hidden_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": None,
            }
        )
    )
    with pytest.raises(DataError) as caught:  # of what comes later: the groups are right
        LanguageModel.from_pretrained(tmp_path)
    assert "n_kv_heads" not in str(caught.value)


def test_a_folder_of_the_model_below_the_head(tmp_path: Path) -> None:
    model = LanguageModel(30, 16, 2, "mamba").eval()
    file = folder_of(model, tmp_path, "mamba") / "model.safetensors"
    tensors = load_file(file)
    assert all(name.startswith("backbone.") for name in tensors)
    save_file({name.removeprefix("backbone."): t for name, t in tensors.items()}, file)
    read = LanguageModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS)[0], model(IDS)[0])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    file = folder_of(LanguageModel(30, 16, 1, "mamba"), tmp_path, "mamba") / "model.safetensors"
    tensors = load_file(file)
    name = "backbone.layers.0.mixer.D"
    save_file({**tensors, name: tensors[name].to(dtype)}, file)
    with pytest.raises(DataError, match=rf"{name} is torch\.{str(dtype)[6:]}: weights are"):
        LanguageModel.from_pretrained(tmp_path)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    model = LanguageModel(30, 16, 1, "mamba")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        model.save_pretrained(tmp_path / "file" / "below")
    for size in (0, -1, "x"):
        with pytest.raises(ConfigError, match="max_shard_size must be an integer of at least 1"):
            model.save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()
