"""Folders of every published family: logits and 64 greedy tokens are those of transformers.

Frozen numbers always; live where LONGSEQ_UPSTREAM_TRANSFORMERS names a folder with transformers
(pip install --target FOLDER transformers). Running this file as a program there writes the frozen
numbers anew. Those of beam search are of 4.53.3, the last version that had its groups.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from longseq.core import LanguageModel
from longseq.core.checkpoints import LAYOUTS

FIXTURE = Path(__file__).parent / "fixtures" / "families.json"
PROMPTS = [[5, 17, 3, 60, 8, 8, 21], [9], [33, 2, 40, 11, 1, 7, 19, 50, 28, 63, 14, 4]]
TOLERANCE = 4e-6
"""Of the greatest logit, some 60 roundings: the frozen float32 numbers themselves lie up to 1.7e-6
of it from a run in float64."""
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
# Name of the case → model_type and settings of a small model.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {**SMALL, "state_size": 4}),
    "mamba-untied": (
        "mamba",
        {
            **SMALL,
            "state_size": 4,
            "tie_word_embeddings": False,
            "use_bias": True,
            "time_step_rank": 3,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "mamba2": (
        "mamba2",
        {
            **SMALL,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "layer_norm_epsilon": 1e-4,
        },
    ),
    "mamba2-limited": (
        "mamba2",
        {
            **SMALL,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "time_step_limit": [0.0, 0.05],
        },
    ),
    "falcon_mamba": ("falcon_mamba", {**SMALL, "state_size": 4, "mixer_rms_eps": 1e-3}),
    "jamba": (
        "jamba",
        {
            **SMALL,
            **HEADS,
            "num_hidden_layers": 3,
            "num_experts": 1,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
        },
    ),
    "bamba": (
        "bamba",
        {**SMALL, **HEADS, **MAMBA2, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **SMALL,
            **HEADS,
            **MAMBA2,
            "mamba_d_ssm": 64,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "mlp_multipliers": [0.7, 0.6],
            "key_multiplier": 0.4,
            "attention_in_multiplier": 1.2,
            "attention_out_multiplier": 0.9,
            "ssm_multipliers": [0.35, 0.25, 0.7, 0.5, 0.6],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.8,
        },
    ),
    "falcon_h1-norm": (
        "falcon_h1",
        {
            **SMALL,
            **HEADS,
            **MAMBA2,
            "mamba_d_ssm": 64,
            "mamba_rms_norm": True,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "projectors_bias": True,
        },
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            **SMALL,
            **HEADS,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "attention_window_size": 8,
        },
    ),
    "xlstm": (
        "xlstm",
        {
            "hidden_size": 128,
            "embedding_dim": 128,
            "num_hidden_layers": 2,
            "num_blocks": 2,
            "num_heads": 4,
            "vocab_size": 64,
            "ffn_proj_factor": 0.5,
            "ffn_round_up_to_multiple_of": 16,
        },
    ),
}
# Whose padded batch is, in transformers 5.24.0, not what it computes for each prompt alone.
PADDED_APART = ("mamba-untied", "falcon_h1-norm", "recurrent_gemma", "xlstm")
# Ends of names → where values lie; all other tensors lie around 0.
CENTRES = {
    "D": 1.0,
    "dt_bias": -3.0,
    "dt_proj.bias": -3.0,
    "recurrent_param": -2.0,
    "fgate_preact.bias": 3.0,
    "A_log": 0.5,
}
UPSTREAM = os.environ.get("LONGSEQ_UPSTREAM_TRANSFORMERS")
live = pytest.mark.skipif(
    UPSTREAM is None,
    reason="LONGSEQ_UPSTREAM_TRANSFORMERS names no folder with transformers "
    "(pip install --target FOLDER transformers)",
)


def value(name: str, shape: tuple[int, ...], offset_norms: bool) -> Tensor:
    """The values of a tensor, by its name alone: the same on every machine."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    # A small embedding, so that the layers and not the last token decide on the next one.
    size = 0.05 if "embed" in name else 0.3 if len(shape) == 2 else 0.1
    centre = next((c for end, c in CENTRES.items() if name.endswith(end)), 0.0)
    if "norm" in name and name.endswith("weight") and not offset_norms:
        centre = 1.0
    return torch.from_numpy(centre + size * noise).float()


def write(folder: Path, case: Mapping[str, Any]) -> Path:
    """Writes a folder of a case of the fixture."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    offset = case["config"]["model_type"] == "recurrent_gemma"
    tensors = {name: value(name, tuple(shape), offset) for name, shape in case["shapes"]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def cases() -> dict[str, Any]:
    return json.loads(FIXTURE.read_text())


def distance(found: Tensor, expected: Tensor) -> float:
    """The greatest difference as a part of the greatest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = cases()[name]
    model = LanguageModel.from_pretrained(write(tmp_path / "model", case))
    with torch.no_grad():
        for prompt, expected in zip(PROMPTS, case["logits"], strict=True):
            logits = model(torch.tensor([prompt]))[0][0, -1]
            assert distance(logits, torch.tensor(expected)) <= TOLERANCE
    together = [one.tokens for one in model.generate(PROMPTS, 64, stop_tokens=())]
    assert together == case["tokens"]


@pytest.mark.parametrize("name", CASES)
def test_a_folder_written_back_is_the_folder_that_was_read(name: str, tmp_path: Path) -> None:
    case = cases()[name]
    first = write(tmp_path / "first", case)
    LanguageModel.from_pretrained(first).save_pretrained(tmp_path / "second")
    written = json.loads((tmp_path / "second" / "config.json").read_text())
    assert {**written, "dtype": None} == {**case["config"], "dtype": None}
    ours, theirs = (
        LanguageModel.from_pretrained(folder).state_dict()
        for folder in (first, tmp_path / "second")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with safe_open(tmp_path / "second" / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(name for name, _ in case["shapes"])


def published(name: str) -> Any:
    """A model of transformers with the values of the case."""
    if UPSTREAM is not None and UPSTREAM not in sys.path:
        sys.path.insert(0, UPSTREAM)
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = CASES[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    model = model.float().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(value(key, tuple(parameter.shape), kind == "recurrent_gemma"))
    return model


def continued(model: Any, prompt: list[int], cached: bool) -> list[int]:
    """64 greedy tokens by transformers."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": cached}
    return model.generate(ids, max_new_tokens=64, **options)[0, len(prompt) :].tolist()


@live
@pytest.mark.parametrize("name", CASES)
def test_live_folders_of_transformers_both_ways(name: str, tmp_path: Path) -> None:
    model = published(name)
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path / "theirs")
    ours = LanguageModel.from_pretrained(tmp_path / "theirs")
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        assert distance(ours(ids)[0], expected) <= TOLERANCE
        # transformers' cached Mamba-2 forgets time_step_limit: it is compared without a cache.
        cached = name != "mamba2-limited"
        assert ours.generate(PROMPTS[0], 64, stop_tokens=())[0].tokens == continued(
            model, PROMPTS[0], cached
        )
        ours.save_pretrained(tmp_path / "ours")
        back, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True, dtype=torch.float32
        )
        assert not any(report.values()), report
        assert torch.equal(back.eval()(ids, use_cache=False).logits, expected)


@live
@pytest.mark.parametrize("name", CASES)
def test_live_ragged_prompts_in_one_batch(name: str, tmp_path: Path) -> None:
    model = published(name)
    model.save_pretrained(tmp_path)
    prompts = [*PROMPTS, [1, 2], [61] * 9]
    ours = LanguageModel.from_pretrained(tmp_path).generate(prompts, 64, stop_tokens=())
    found = [one.tokens for one in ours]
    assert found == [continued(model, prompt, False) for prompt in prompts]
    if name in PADDED_APART:
        return
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
    padded = model.generate(ids, attention_mask=ids != 0, max_new_tokens=64, **options)
    assert found == padded[:, longest:].tolist()


def hyenadna(weights: Mapping[str, Tensor], tokens: list[int], config: Mapping[str, Any]) -> Tensor:
    """The published HyenaDNA written out, in float64: arXiv 2306.15794, section 3."""
    w = {key: tensor.double() for key, tensor in weights.items()}
    layer_norm = torch.nn.functional.layer_norm
    x = w["hyena.backbone.embeddings.word_embeddings.weight"][tokens]
    length, width = x.shape

    def norm(x: Tensor, key: str) -> Tensor:
        return layer_norm(x, (width,), w[f"{key}.weight"], w[f"{key}.bias"], 1e-5)

    def linear(x: Tensor, key: str) -> Tensor:
        y = x @ w[f"{key}.weight"].T
        return y + w[f"{key}.bias"] if f"{key}.bias" in w else y

    for i in range(config["n_layer"]):
        key = f"hyena.backbone.layers.{i}"
        f = f"{key}.mixer.filter_fn"
        h = w[f"{f}.pos_emb.z"][0, :length]
        for layer in (0, 2, 4):
            h = torch.sin(
                w[f"{f}.implicit_filter.1.freq"] * linear(h, f"{f}.implicit_filter.{layer}")
            )
        h = linear(h, f"{f}.implicit_filter.6")
        t = w[f"{f}.pos_emb.t"][0, :length]
        h = h * (torch.exp(-t * w[f"{f}.modulation.deltas"][0].abs()) + 0.05)
        u = linear(norm(x, f"{key}.norm1"), f"{key}.mixer.in_proj")
        taps = w[f"{key}.mixer.short_filter.weight"][:, 0]
        padded = torch.cat([torch.zeros(2, u.shape[1], dtype=u.dtype), u])
        u = sum(padded[k : k + length] * taps[:, k] for k in range(3))
        u = u + w[f"{key}.mixer.short_filter.bias"]
        gate, last, v = u.split(width, 1)
        v = v * last
        y = torch.stack([(h[: t + 1].flip(0) * v[: t + 1]).sum(0) for t in range(length)])
        y = (y + v * w[f"{f}.bias"]) * gate
        x = x + linear(y, f"{key}.mixer.out_proj")
        hidden = linear(norm(x, f"{key}.norm2"), f"{key}.mlp.fc1")
        x = x + linear(torch.nn.functional.gelu(hidden, approximate="tanh"), f"{key}.mlp.fc2")
    return norm(x, "hyena.backbone.ln_f") @ w["lm_head.weight"].T


def test_hyenadna_is_its_formulas(tmp_path: Path) -> None:
    config = {
        "model_type": "hyenadna",
        "auto_map": {"AutoModelForCausalLM": "modeling_hyena.HyenaDNAForCausalLM"},
        "d_model": 16,
        "d_inner": 24,
        "n_layer": 2,
        "vocab_size": 12,
        "max_seq_len": 90,
        "filter_order": 8,
        "emb_dim": 5,
        "activation_freq": 10,
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = {"l_max": 90, "filter_order": 8, "emb_dim": 5, "num_inner_mlps": 2}
    source = LanguageModel(
        16,
        16,
        2,
        "hyena",
        settings,
        mlp_ratio=1.5,
        norm="layer",
        tie_embeddings=False,
        mlp_kwargs={"d_hidden": 24},
    )
    tensors = {
        key: value(key, tuple(tensor.shape), False) if tensor.ndim != 3 else tensor
        for key, tensor in LAYOUTS["hyenadna"].to_published(source.state_dict()).items()
        # Shared by all layers of a filter, and kept once, as safetensors does.
        if not key.endswith(("filter.3.freq", "filter.5.freq"))
    }
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = LanguageModel.from_pretrained(tmp_path)
    prompts = [[7, 8, 9, 10, 7, 7, 8], [10]]
    with torch.no_grad():
        expected = hyenadna(tensors, prompts[0], config)
        assert distance(model(torch.tensor(prompts[:1]))[0][0], expected) <= TOLERANCE
    for prompt, found in zip(prompts, model.generate(prompts, 64), strict=True):
        assert len(found.tokens) == 64
        whole = hyenadna(tensors, prompt + found.tokens, config)
        assert whole[len(prompt) - 1 : -1].argmax(-1).tolist() == found.tokens


def main() -> None:
    """Writes the frozen numbers anew."""
    made = {}
    for name in CASES:
        model = published(name)
        config = json.loads(model.config.to_json_string())
        config.pop("transformers_version", None)
        shapes = [[key, list(p.shape)] for key, p in model.named_parameters()]
        with torch.no_grad():
            logits = [
                model(torch.tensor([prompt]), use_cache=False).logits[0, -1] for prompt in PROMPTS
            ]
        tokens = [continued(model, prompt, False) for prompt in PROMPTS]
        print(name, [tokens[i] == continued(model, p, True) for i, p in enumerate(PROMPTS)])
        print(tokens[0][:30])
        made[name] = {
            "config": config,
            "shapes": shapes,
            "logits": [[round(v, 7) for v in row.tolist()] for row in logits],
            "tokens": tokens,
        }
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in made.items())
    FIXTURE.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
