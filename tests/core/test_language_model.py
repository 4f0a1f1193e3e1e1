"""LanguageModel: folders in and out, refusals by name; dtypes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longseq.core import LanguageModel
from longseq.core.errors import ArgumentError, ConfigError, DataError

MAMBA: dict[str, Any] = {"state_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
CONFIG = {"model_type": "mamba", "vocab_size": 24, **MAMBA}
IDS = torch.tensor([[1, 5, 3, 23, 0, 7]])


def model(mixer: Any = "mamba", **settings: Any) -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(24, 16, 2, mixer, **settings).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def same(a: LanguageModel, b: LanguageModel) -> bool:
    with torch.no_grad():
        return torch.equal(a(IDS)[0], b(IDS)[0])


@pytest.mark.parametrize("mixer", ["mlstm", ["mamba", ["attention", {"n_heads": 2}]], "gla"])
@pytest.mark.parametrize("tied", [True, False])
def test_any_model_is_written_and_read(mixer: Any, tied: bool, tmp_path: Path) -> None:
    source = model(mixer, tie_embeddings=tied, mlp_ratio=2.0, mlp="swiglu", logit_soft_cap=9.0)
    source.save_pretrained(tmp_path)
    copy = LanguageModel.from_pretrained(tmp_path)
    assert same(source, copy) and not copy.training
    assert (copy.lm_head.weight is copy.embedding.weight) == tied
    copy.save_pretrained(tmp_path / "again")
    assert same(source, LanguageModel.from_pretrained(tmp_path / "again"))


@pytest.mark.parametrize(
    ("family", "mixer", "kwargs"),
    [
        ("mamba", "mamba", {"d_state": 4, "dt_rank": 3, "bias": True}),
        ("mamba", "mamba", None),
        ("mamba2", "mamba2", {"d_state": 8, "headdim": 4, "ngroups": 2}),
        ("mamba2", "mamba2", {"d_state": 8, "dt_limit": (0.0, 0.1)}),
        ("falcon_mamba", "mamba", {"bcdt_norm": "weightless", "bcdt_eps": 1e-3}),
    ],
)
def test_a_model_of_ours_in_the_names_of_a_family(
    family: str, mixer: str, kwargs: Any, tmp_path: Path
) -> None:
    source = model(mixer, mixer_kwargs=kwargs)
    source.save_pretrained(tmp_path, family)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == family and config["architectures"][0].endswith("ForCausalLM")
    assert "backbone.embeddings.weight" in load_file(tmp_path / "model.safetensors")
    copy = LanguageModel.from_pretrained(tmp_path)
    assert copy.published == config and same(source, copy)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("mamba", {"mixer": "mamba2"}, "place for"),
        ("mamba", {"mlp_ratio": 2.0}, "mlp"),
        ("mamba", {"norm": "layer"}, "norm1"),
        ("mamba", {"mixer_kwargs": {"bcdt_norm": "rms"}}, "bcdt_norm|layernorm"),
        ("mamba", {"logit_soft_cap": 3.0}, "logit_soft_cap"),
        ("mamba", {"mixer": ["mamba", ["mamba", {"d_state": 3}]]}, "pattern"),
        ("mamba2", {"mixer": "mamba2", "mixer_kwargs": {"D_has_hdim": True}}, "mixer.D"),
        ("mamba2", {"mixer": "mamba2", "mixer_kwargs": {"norm_before_gate": True}}, "before_gate"),
        ("mamba2", {"mixer": "mamba2", "mixer_kwargs": {"norm_eps": 1e-3}}, "eps"),
        ("mamba3", {}, "no family"),
    ],
)
def test_what_a_family_cannot_say_is_not_written(
    family: str, settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        model(**settings).save_pretrained(tmp_path / "out", family)
    assert not (tmp_path / "out").exists()


def test_shards_and_pickles(tmp_path: Path) -> None:
    source = model()
    source.save_pretrained(tmp_path / "one")
    source.save_pretrained(tmp_path / "many", max_shard_size=4000)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 3 and not (tmp_path / "many" / "model.safetensors").exists()
    assert same(source, LanguageModel.from_pretrained(tmp_path / "many"))
    source.save_pretrained(tmp_path / "many")  # in place of the shards
    assert same(source, LanguageModel.from_pretrained(tmp_path / "many"))
    weights = load_file(tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "one" / "pytorch_model.bin")
    assert same(source, LanguageModel.from_pretrained(tmp_path / "one"))
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: weights[name] for name in part}, tmp_path / "one" / f"p{number}.bin")
        places |= dict.fromkeys(part, f"p{number}.bin")
    (tmp_path / "one" / "pytorch_model.bin").unlink()
    index = tmp_path / "one" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(source, LanguageModel.from_pretrained(tmp_path / "one"))
    (tmp_path / "one" / "p1.bin").unlink()
    with pytest.raises(DataError, match=r"p1\.bin"):
        LanguageModel.from_pretrained(tmp_path / "one")
    index.write_text(json.dumps({"weight_map": {"x": "../p0.bin"}}))
    with pytest.raises(DataError, match="outside its folder"):
        LanguageModel.from_pretrained(tmp_path / "one")


def test_stop_tokens_are_written_and_read(tmp_path: Path) -> None:
    source = model()
    source.stop_tokens = (3, 5)
    source.save_pretrained(tmp_path, "mamba")
    again = LanguageModel.from_pretrained(tmp_path)
    assert again.stop_tokens == (3, 5)
    again.stop_tokens = ()
    again.save_pretrained(tmp_path)
    assert LanguageModel.from_pretrained(tmp_path).stop_tokens == ()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id must be token ids"):
        LanguageModel.from_pretrained(tmp_path)


def test_padding_changes_nothing() -> None:
    lm, ids = model(), torch.tensor([[7, 7, 3, 1, 4], [5, 9, 2, 6, 5]])
    with torch.no_grad():
        alone, states = lm(ids[:1, 2:])
        left, after = lm(ids, attention_mask=torch.tensor([[0, 0, 1, 1, 1], [1] * 5]))
        assert torch.allclose(left[0, 2:], alone[0], atol=1e-6)
        assert torch.allclose(after[0]["ssm"][:1], states[0]["ssm"], atol=1e-6)
        right, _ = lm(ids.roll(-2, 1), lengths=[3, 0])
        assert torch.allclose(right[0, :3], alone[0], atol=1e-6)


def test_what_describes_no_model(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    for settings in ({"vocab_size": 8, "d_modle": 4}, {"d_model": 8}, {"vocab_size": "8"}):
        file.write_text(json.dumps({"model_type": "longseq", "settings": settings}))
        with pytest.raises(DataError, match=r"config\.json: does not describe a model"):
            LanguageModel.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        model().save_pretrained(file)


@pytest.mark.parametrize("name", ["vocab_size", "n_layers", "d_model"])
def test_sizes_beyond_the_weights_are_refused_before_they_are_built(
    name: str, tmp_path: Path
) -> None:
    model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["settings"][name] = 10**12
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"config\.json: {name} 1000000000000 needs more"):
        LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json"],
)
def test_a_file_that_cannot_be_written_is_told_before_the_others(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"{name}: is a folder"):
        model().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_weights_that_find_no_room_are_one_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(DataError, match=r"model\.safetensors: cannot be written"):
            model().save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_ids_that_are_none() -> None:
    lm = model()
    for ids in (torch.zeros(1, 2), torch.full((1, 2), 1000), torch.full((1, 2), -1)):
        with pytest.raises(ArgumentError, match="token ids must"):
            lm(ids)


class Payload:
    """Makes a folder when it is unpickled by a reader that runs what a pickle names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": Payload(tmp_path / "it_ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds no state dict"):
        LanguageModel.from_pretrained(tmp_path)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64, "auto"])
def test_dtypes(dtype: Any, tmp_path: Path) -> None:
    source = model(["mamba", "mamba2"])
    source.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32"
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    copy = LanguageModel.from_pretrained(tmp_path, dtype)
    wide = dtype is torch.float64
    assert copy.embedding.weight.dtype == (torch.float64 if wide else torch.bfloat16)
    rates = [p.dtype for n, p in copy.named_parameters() if n.endswith("A_log")]
    assert rates == [torch.float64 if wide else torch.float32] * 2
    with torch.no_grad():
        difference = (copy(IDS)[0] - source(IDS)[0]).abs().max() / source(IDS)[0].abs().max()
    assert difference < (1e-5 if wide else 0.03)
    assert len(copy.generate(IDS, 4)[0].tokens) == 4
    copy.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["dtype"] == ("float64" if wide else "bfloat16")


def test_the_residual_stream_in_float32() -> None:
    narrow, wide = (
        model(residual_in_fp32=flag).to(torch.bfloat16).eval() for flag in (False, True)
    )
    exact = model()
    with torch.no_grad():
        errors = [(m(IDS)[0].float() - exact(IDS)[0]).abs().mean() for m in (narrow, wide)]
        assert wide.backbone(wide.embed(IDS))[0].dtype == torch.bfloat16
    assert errors[1] < errors[0]


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, "'llama' is no family of ours"),
        ({"hidden_size": 4}, "None is no family"),
        ({"model_type": "zamba2"}, "zamba2.*shared between layers"),
        ({**CONFIG, "quantization_config": {"bits": 4}}, "quantization_config = .*ignore="),
        ({**CONFIG, "hidden_act": "relu"}, "hidden_act = 'relu'.*only 'silu'"),
        ({**CONFIG, "auto_map": {"x": "y"}}, "auto_map"),
        ({**CONFIG, "intermediate_size": 33}, "intermediate_size = 33"),
        ({**CONFIG, "hidden_size": "wide"}, "cannot be understood|d_model|integer"),
        ({"model_type": "jamba"}, "num_experts = None gives layers a mixture of experts.*only 1"),
        ({"model_type": "xlstm", "weight_mode": "fused"}, "weight_mode = 'fused'"),
        (
            {
                "model_type": "bamba",
                "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0},
            },
            "rope_parameters.*scales rotary positions",
        ),
        ({"model_type": "recurrent_gemma", "embeddings_scale_by_sqrt_dim": False}, "sqrt_dim"),
        ({"model_type": "mamba2", "num_heads": 3}, "num_heads = 3"),
        ({"model_type": "falcon_h1", "mamba_use_mlp": False}, "mamba_use_mlp"),
        ({"model_type": "hyenadna", "hyena_order": 3}, "hyena_order = 3"),
        ({"d_model": 8, "ssm_cfg": {}, "attn_layer_idx": [1]}, "attn_layer_idx"),
        ({**CONFIG, "hidden_act": "relu"}, r"\(only 'silu'\)"),
        ({**CONFIG, "layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon = '1e-5' must be a number"),
        ({**CONFIG, "layer_norm_epsilon": -1}, "layer_norm_epsilon = -1 must be a number of at"),
        ({**CONFIG, "use_bias": 1}, "use_bias = 1 must be true or false"),
        ({**CONFIG, "num_hidden_layers": 2.5}, "num_hidden_layers = 2.5 must be an integer"),
        ({"model_type": "falcon_h1", "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        (
            {"model_type": "falcon_h1", "rope_parameters": {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (
            {"model_type": "bamba", "rope_parameters": {"partial_rotary_factor": 1.0}},
            "partial_rotary_factor",
        ),
        (
            {"model_type": "bamba", "rope_theta": 1e3, "rope_parameters": {"rope_theta": 1e6}},
            "rope_theta = 1000.0 is 1000000.0 in rope_parameters",
        ),
        ({"model_type": "xlstm", "add_qk_norm": True}, "add_qk_norm = True"),
        ({"model_type": "xlstm", "head_dim": 7}, "head_dim = 7"),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        LanguageModel.from_pretrained(written(tmp_path, config))


def test_a_setting_that_does_not_matter_can_be_left_out(tmp_path: Path) -> None:
    source = model(mixer_kwargs={"d_state": 4})
    source.save_pretrained(tmp_path, "mamba")
    config = json.loads((tmp_path / "config.json").read_text())
    written(tmp_path, {**config, "brand_new": 3})
    with pytest.raises(DataError, match="brand_new = 3"):
        LanguageModel.from_pretrained(tmp_path)
    assert same(source, LanguageModel.from_pretrained(tmp_path, ignore=["brand_new"]))


def test_files_that_are_missing_or_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a folder.*download"):
        LanguageModel.from_pretrained(tmp_path / "state-spaces" / "mamba-130m-hf")
    with pytest.raises(DataError, match=r"config\.json"):
        LanguageModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        LanguageModel.from_pretrained(tmp_path)
    written(tmp_path, CONFIG)
    with pytest.raises(DataError, match="holds no weights"):
        LanguageModel.from_pretrained(tmp_path)
    model("mamba2").save_pretrained(tmp_path)
    written(tmp_path, CONFIG)
    with pytest.raises(DataError, match="missing"):
        LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", [None, "mamba", "mamba_ssm"])
def test_a_head_that_was_given_weights_of_its_own_is_written_so(
    family: str | None, tmp_path: Path
) -> None:
    """As before adapters of a tied head are merged into it."""
    source = model(mixer_kwargs={"d_state": 4})
    if family == "mamba_ssm":
        layout = {"embedding.": "backbone.embedding.", "norm1": "norm"}
        state = dict(source.state_dict())
        for ours, theirs in layout.items():
            state = {key.replace(ours, theirs): value for key, value in state.items()}
        torch.save(state, tmp_path / "pytorch_model.bin")
        config = {"d_model": 16, "n_layer": 2, "vocab_size": 21, "ssm_cfg": {"d_state": 4}}
        written(tmp_path, {**config, "rms_norm": True, "residual_in_fp32": True})
    else:
        source.save_pretrained(tmp_path, family)
    source = LanguageModel.from_pretrained(tmp_path)
    assert source.lm_head.weight is source.embedding.weight
    source.lm_head.weight = torch.nn.Parameter(2 * source.embedding.weight.detach())
    source.save_pretrained(tmp_path / "again")
    assert same(source, LanguageModel.from_pretrained(tmp_path / "again"))


def test_a_head_that_should_be_tied_and_is_not(tmp_path: Path) -> None:
    source = model(tie_embeddings=False, mixer_kwargs={"d_state": 4})
    source.save_pretrained(tmp_path, "mamba")
    config = json.loads((tmp_path / "config.json").read_text())
    written(tmp_path, {**config, "tie_word_embeddings": True})
    with pytest.raises(DataError, match="head differs"):
        LanguageModel.from_pretrained(tmp_path)


def test_folders_of_mamba_ssm(tmp_path: Path) -> None:
    source = model(mixer_kwargs={"d_state": 4})
    state = {
        key.replace("embedding.", "backbone.embedding.").replace("norm1", "norm"): value
        for key, value in source.state_dict().items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = {"d_model": 16, "n_layer": 2, "vocab_size": 21, "ssm_cfg": {"d_state": 4}}
    written(tmp_path, {**config, "rms_norm": True, "residual_in_fp32": True})
    copy = LanguageModel.from_pretrained(tmp_path)
    assert same(source, copy)
    copy.save_pretrained(tmp_path / "again")
    assert same(source, LanguageModel.from_pretrained(tmp_path / "again"))


def test_stop_tokens_are_those_of_the_folder(tmp_path: Path) -> None:
    source = model(mixer_kwargs={"d_state": 4})
    source.save_pretrained(tmp_path, "mamba")
    config = json.loads((tmp_path / "config.json").read_text())
    free = source.generate(IDS, 8)[0].tokens
    written(tmp_path, {**config, "eos_token_id": free[2]})
    read = LanguageModel.from_pretrained(tmp_path)
    assert read.stop_tokens == (free[2],)
    assert read.generate(IDS, 8)[0].tokens == free[: free.index(free[2]) + 1]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, free[3]]}))
    assert LanguageModel.from_pretrained(tmp_path).stop_tokens == (1, free[3])


def test_a_head_stays_tied_when_a_model_of_the_meta_device_gets_memory() -> None:
    torch.manual_seed(0)
    model = LanguageModel(16, 8, 1)
    with torch.device("meta"):
        late = LanguageModel(16, 8, 1)
    late = late.to_empty(device="cpu")
    late.load_state_dict(model.state_dict())
    assert late.lm_head.weight is late.embedding.weight
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(late(ids)[0], model(ids)[0])
    assert late.double().lm_head.weight is late.embedding.weight
