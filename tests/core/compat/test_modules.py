"""Layers and language model by the published names: equal to the core's mixers, stepping equal to
whole sequences, packed sequences equal to the sequences one by one."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from longseq.core.compat.mamba_ssm import Mamba, Mamba2, Mamba2Simple, MambaLMHeadModel
from longseq.core.compat.mamba_ssm.models.config_mamba import MambaConfig
from longseq.core.compat.mamba_ssm.models.mixer_seq_simple import MixerModel, create_block
from longseq.core.compat.mamba_ssm.modules.block import Block
from longseq.core.compat.mamba_ssm.modules.mha import MHA
from longseq.core.compat.mamba_ssm.utils import generation
from longseq.core.compat.mamba_ssm.utils.generation import InferenceParams
from longseq.core.errors import ArgumentError, ConfigError, DataError
from longseq.core.mixers.mamba import Mamba as CoreMamba
from longseq.core.mixers.mamba2 import Mamba2 as CoreMamba2

SMALL: dict[str, Any] = {"d_model": 16, "n_layer": 3, "vocab_size": 30}
MAMBA2 = {"layer": "Mamba2", "d_state": 8, "headdim": 4, "ngroups": 2}
MODELS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba, plain": {"fused_add_norm": False, "rms_norm": False, "residual_in_fp32": False},
    "mamba2": {"ssm_cfg": MAMBA2},
    "mamba2, mlp inside": {"ssm_cfg": {**MAMBA2, "d_ssm": 24, "ngroups": 1, "D_has_hdim": True}},
    "mlp, untied": {"d_intermediate": 20, "tie_embeddings": False},
    "hybrid": {
        "ssm_cfg": MAMBA2,
        "attn_layer_idx": [1],
        "attn_cfg": {
            "num_heads": 4,
            "num_heads_kv": 2,
            "rotary_emb_dim": 2,
            "causal": True,
            "d_conv": 3,
            "mlp_dim": 10,
        },
    },
}


def model_of(kind: str, **more: Any) -> MambaLMHeadModel:
    torch.manual_seed(0)
    return MambaLMHeadModel(MambaConfig(**{**SMALL, **MODELS[kind], **more})).double()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_layers_are_the_cores() -> None:
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (Mamba(16), CoreMamba(16)),
        (Mamba2(16, 8, headdim=8), CoreMamba2(16, 8, headdim=8)),
        (Mamba2Simple(16, 8, headdim=8, use_mem_eff_path=False), CoreMamba2(16, 8, headdim=8)),
        (
            Mamba2(16, 8, headdim=8, ngroups=2, rmsnorm=False, dt_limit=(0.01, 0.1)),
            CoreMamba2(16, 8, headdim=8, ngroups=2, rmsnorm=False, dt_limit=(0.01, 0.1)),
        ),
    ]
    for theirs, ours in pairs:
        theirs.double(), ours.double()
        ours.load_state_dict(theirs.state_dict())  # by the same names and shapes
        close(theirs(x), ours(x)[0])


def test_initial_values() -> None:
    torch.manual_seed(0)
    layer = Mamba(64, dt_min=0.01, dt_max=0.02)
    steps = nn.functional.softplus(layer.dt_proj.bias)
    assert steps.min() >= 0.0099 and steps.max() <= 0.0201 and steps.std() > 0.001
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).expand(128, -1))
    assert (layer.D == 1).all() and layer.A_log._no_weight_decay and layer.dt_proj.bias._no_reinit
    layer2 = Mamba2(64, A_init_range=(2, 3))
    assert layer2.A_log.exp().min() >= 2 and layer2.A_log.exp().max() <= 3
    model = MambaLMHeadModel(MambaConfig(d_model=64, n_layer=4, vocab_size=1001))
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert model.lm_head.weight.shape[0] == 1008  # padded to a multiple
    assert abs(model.lm_head.weight.std() - 0.02) < 1e-3
    out = model.backbone.layers[0].mixer
    assert isinstance(out, Mamba)
    bound = 1 / (128**0.5 * 2)  # what writes into the sum of 4 layers is halved
    assert bound / 1.1 < out.out_proj.weight.abs().max() <= bound
    assert (out.dt_proj.bias != 0).all()


def test_meta_device_and_dtype() -> None:
    for kind in MODELS:
        config = MambaConfig(**{**SMALL, **MODELS[kind]})
        model = MambaLMHeadModel(config, device="meta", dtype=torch.bfloat16)
        assert all(p.is_meta for p in model.parameters())
    half = MambaLMHeadModel(MambaConfig(**SMALL), dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    mixer = half.backbone.layers[0].mixer
    assert isinstance(mixer, Mamba) and mixer.A_log.dtype == mixer.D.dtype == torch.float32
    assert half(torch.arange(6).view(2, 3)).logits.isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_stepping_is_the_whole_sequence(kind: str) -> None:
    model = model_of(kind)
    tokens = torch.randint(30, (3, 12))
    whole = model(tokens).logits
    done = model.generate(
        tokens[:, :5],
        max_length=12,
        teacher_outputs=tokens,
        output_scores=True,
        return_dict_in_generate=True,
        cg=True,
    )
    assert isinstance(done, generation.DecoderOnlyOutput) and done.scores is not None
    assert torch.equal(done.sequences, tokens)
    close(torch.stack(done.scores, 1), whole[:, 4:-1])
    close(model(tokens, num_last_tokens=2).logits, whole[:, -2:])
    whole.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_packed_sequences_and_their_states() -> None:
    model = model_of("mamba2")
    parts = [torch.randint(30, (1, n)) for n in (7, 1, 9)]
    bounds = torch.tensor([0, 7, 8, 17, 17], dtype=torch.int32)  # the last one is empty
    row = torch.cat([*parts, torch.zeros(1, 3, dtype=torch.long)], 1)  # and there is padding
    index = torch.tensor([[0] * 7 + [1] + [2] * 9 + [-1] * 3])
    carried = InferenceParams(max_seqlen=40, max_batch_size=4)
    logits = model(row, inference_params=carried, seq_idx=index, cu_seqlens=bounds).logits
    close(logits[:, :17], torch.cat([model(part).logits for part in parts], 1))
    close(model(row, seq_idx=index).logits[:, :17], logits[:, :17])
    carried.seqlen_offset = 1
    new = torch.randint(30, (4, 1))
    after = model(new, inference_params=carried).logits
    for i, part in enumerate([*parts, parts[0][:, :0]]):
        close(after[i], model(torch.cat([part, new[i : i + 1]], 1)).logits[0, -1:])


def test_two_way_scans() -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    one = Mamba(16, bimamba_type="v1").double()
    with torch.no_grad():
        one.A_b_log += 0.3
    with pytest.raises(ArgumentError, match="cannot generate"):
        one(x, inference_params=InferenceParams(9, 2))
    two = Mamba(16, bimamba_type="v2", if_divide_out=True, init_layer_scale=0.5).double()
    for ends in ("", "_b"):  # the same weights both ways: turning the input turns the output
        names = ("A_log", "D") if not ends else ("A_b_log", "D_b")
        for a, b in zip(("A_log", "D"), names):
            getattr(two, b).data.copy_(getattr(two, a))
    for name in ("conv1d", "x_proj", "dt_proj"):
        getattr(two, f"{name}_b").load_state_dict(getattr(two, name).state_dict())
    close(two(x.flip(1)), two(x).flip(1))
    plain = Mamba(16).double()
    plain.load_state_dict({k: two.state_dict()[k] for k in plain.state_dict()})
    close(two(x), (plain(x) + plain(x.flip(1)).flip(1)) / 4)


def test_old_and_new_calls_of_the_blocks() -> None:
    from functools import partial

    old = Block(8, partial(Mamba, layer_idx=0), norm_cls=nn.LayerNorm)  # as in mamba-ssm 1
    new = Block(8, partial(Mamba, layer_idx=0), nn.Identity, norm_cls=nn.LayerNorm)
    assert old.mlp is None and new.mlp is None
    assert MixerModel(d_model=8, n_layer=1, vocab_size=5)(torch.zeros(1, 2).long()).shape[2] == 8
    with pytest.raises(ConfigError, match="vocab_size is missing"):
        MixerModel(8, 1, 5)
    with pytest.raises(ConfigError, match="layer must be one of Mamba1, Mamba2, got 'Mamba3'"):
        create_block(8, ssm_cfg={"layer": "Mamba3"})
    with pytest.raises(TypeError, match="RMSNorm, got GroupNorm"):
        Block(8, Mamba, norm_cls=partial(nn.GroupNorm, 2), fused_add_norm=True)
    with pytest.raises(ConfigError, match="process_group"):
        Mamba2(8, process_group=object())
    with pytest.raises(ConfigError, match="num_heads"):
        MHA(9, 2)
    with pytest.raises(ArgumentError, match="layer_idx"):
        Mamba(8)(torch.zeros(1, 2, 8), inference_params=InferenceParams(2, 1))


def test_an_adapter_is_asked() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x, layer = torch.randn(1, 5, 8), Mamba(8)
    before = layer(x)
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        plain = getattr(layer, name)
        wrapped = Doubled(plain.in_features, plain.out_features, plain.bias is not None)
        wrapped.load_state_dict(plain.state_dict())
        setattr(layer, name, wrapped)
        assert not torch.allclose(layer(x), before), name
        setattr(layer, name, plain)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = model_of("mamba2").float()
    model.save_pretrained(tmp_path)
    again = MambaLMHeadModel.from_pretrained(str(tmp_path), dtype=torch.float64)
    assert again.lm_head.weight.dtype == torch.float64 and again.config == model.config
    tokens = torch.randint(30, (2, 5))
    close(again(tokens).logits, model.double()(tokens).logits)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"pytorch_model\.bin: is no file of weights"):
        MambaLMHeadModel.from_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 4, "model_type": "mamba"}')
    with pytest.raises(ConfigError, match="it has hidden_size, model_type"):
        MambaLMHeadModel.from_pretrained(str(tmp_path))
    with pytest.raises(DataError, match=r"config\.json"):
        MambaLMHeadModel.from_pretrained(str(tmp_path.parent))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(kind: str, tmp_path: Path) -> None:
    model = model_of("mamba")
    model.save_pretrained(tmp_path)
    whole = tmp_path / "pytorch_model.bin"
    weights = {k: v.contiguous() for k, v in torch.load(whole).items()}
    whole.unlink()
    if model.config.tie_embeddings:
        del weights["lm_head.weight"]  # a tied tensor is stored once
    places = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        file, part = f"part{number}.{kind}", {name: weights[name] for name in names}
        save_file(part, tmp_path / file) if kind != "bin" else torch.save(part, tmp_path / file)
        places |= dict.fromkeys(names, file)
    base = "pytorch_model.bin" if kind == "bin" else "model.safetensors"
    (tmp_path / f"{base}.index.json").write_text(json.dumps({"weight_map": places}))
    dtype = model.lm_head.weight.dtype
    again = MambaLMHeadModel.from_pretrained(str(tmp_path), dtype=dtype)
    tokens = torch.randint(30, (2, 5))
    close(again(tokens).logits, model(tokens).logits)
    (tmp_path / f"part1.{kind}").unlink()
    with pytest.raises(DataError, match=rf"part1\.{kind}"):
        MambaLMHeadModel.from_pretrained(str(tmp_path))
    (tmp_path / f"{base}.index.json").unlink()
    with pytest.raises(DataError, match="holds no weights"):
        MambaLMHeadModel.from_pretrained(str(tmp_path))


def test_prompts_that_are_none_and_several_ends() -> None:
    model = model_of("mamba")
    for prompt in (torch.zeros(2, 0, dtype=torch.long), torch.zeros(1, 2), torch.tensor([1])):
        with pytest.raises(ArgumentError, match="input_ids must be tokens"):
            model.generate(prompt, 4)
    plain = model.generate(torch.tensor([[3, 1]]), 8)
    ended = model.generate(torch.tensor([[3, 1]]), 8, eos_token_id=[31, int(plain[0, 4])])
    first = plain[0, 2:].tolist().index(int(plain[0, 4]))
    assert torch.equal(ended, plain[:, : first + 3])


def test_a_name_that_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(Exception):
        pass

    class Unreached(Missing):
        pass

    def download(name: str, file: str) -> str:
        raise {"a/none": Missing, "a/down": Unreached}.get(name, ValueError)()

    hub, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    vars(errors).update(
        EntryNotFoundError=Missing,
        LocalEntryNotFoundError=Unreached,
        HFValidationError=ValueError,
        HfHubHTTPError=OSError,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    for name, said in (
        ("a/none", "there is no"),
        ("a/down", "not reached"),
        ("/x", "no mod"),
    ):
        with pytest.raises(DataError, match=said):
            MambaLMHeadModel.from_pretrained(name)


def test_sampling() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]])).expand(4000, -1)

    def drawn(**options: Any) -> list[float]:
        torch.manual_seed(0)
        found = generation.sample(logits.clone(), **options)
        return (found.bincount(minlength=4) / len(found)).tolist()

    assert drawn() == [1, 0, 0, 0]
    assert drawn(top_k=0) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.03)
    assert drawn(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    assert drawn(top_k=0, top_p=0.7) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    assert drawn(top_k=0, top_p=1e-9) == [1, 0, 0, 0]
    assert drawn(top_k=0, min_p=0.4) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    cold = [p**2 / 0.345 for p in (0.5, 0.25, 0.15, 0.1)]
    assert drawn(top_k=0, temperature=0.5) == pytest.approx(cold, abs=0.03)
    for wrong in ({"top_p": 2.0}, {"temperature": 0.0}, {"top_k": -1}):
        with pytest.raises(ConfigError, match="sampling needs"):
            generation.sample(logits, **wrong)
    scores = torch.tensor([[2.0, -2.0, 1.0]])
    generation.modify_logit_for_repetition_penalty(scores, torch.tensor([[0, 1, 0]]), 2.0)
    assert scores.tolist() == [[1.0, -4.0, 1.0]]


def test_generation_ends(capsys: pytest.CaptureFixture[str]) -> None:
    class Streamer:
        seen: list[Tensor]

        def __init__(self) -> None:
            self.seen, self.ended = [], False

        def put(self, tokens: Tensor) -> None:
            self.seen.append(tokens)

        def end(self) -> None:
            self.ended = True

    model, prompt = model_of("mamba"), torch.randint(30, (2, 3))
    streamer = Streamer()
    tokens = model.generate(
        prompt, max_length=8, top_k=5, repetition_penalty=1.3, streamer=streamer, vocab_size=30
    )
    assert isinstance(tokens, Tensor) and tokens.shape == (2, 8) and tokens.max() < 30
    assert torch.equal(torch.cat(streamer.seen, 1), tokens) and streamer.ended
    first = model.generate(prompt[:1], max_length=8, enable_timing=True)
    assert isinstance(first, Tensor) and "decoding time" in capsys.readouterr().out
    stopped = model.generate(prompt[:1], max_length=8, eos_token_id=int(first[0, 4]))
    assert torch.equal(stopped, first[:, : stopped.shape[1]]) and stopped.shape[1] <= 5
