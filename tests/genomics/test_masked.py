"""Masked models: equivariance, hiding, and Caduceus written out with its doubled channels."""

import json

import pytest
import torch
from safetensors.torch import save_file

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.genomics.data.tokenizer import MASK, PAD, N
from longseq.genomics.masked_task import MaskedLanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.published import read_published
from longseq.genomics.scorers import load_model, read_task

MAMBA = {"mixer": "mamba", "mixer_kwargs": {"d_state": 4}, "tied": ["in_proj", "out_proj"]}
COMPLEMENT = [*range(7), 10, 9, 8, 7, *range(11, 16)]


def random_weights(module: torch.nn.Module) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def make(symmetry: str, layers: int = 2, norm: str = "rms") -> MaskedDNAModel:
    torch.manual_seed(0)
    model = MaskedDNAModel(16, layers, "bidirectional", MAMBA, norm=norm, symmetry=symmetry)
    random_weights(model)
    return model.eval()


@pytest.mark.parametrize("length", [1, 2, 37])
@pytest.mark.parametrize("symmetry", ["ph", "ps", "ps_swapped"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_reverse_complement_goes_through(symmetry, layers, length) -> None:
    model = make(symmetry, layers)
    ids = torch.randint(7, 12, (2, length))
    ids[0, 0] = MASK
    other = torch.tensor(COMPLEMENT)[ids].flip(1)
    with torch.no_grad():
        said, turned = model(ids), model(other)
    torch.testing.assert_close(turned, said.flip(1)[..., COMPLEMENT], rtol=1e-6, atol=1e-6)
    assert said.abs().max() > 1
    plain = MaskedDNAModel(16, layers, "bidirectional", MAMBA).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert (plain(other) - plain(ids).flip(1)[..., COMPLEMENT]).abs().max() > 1e-2


def published(model: MaskedDNAModel, fused: bool, layout: str) -> dict[str, torch.Tensor]:
    """The weights under Caduceus' names, what is shared once, as safetensors has it."""
    found, ps = {}, layout == "ps"
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" or ("rev.in_proj" in key) or ("rev.out_proj" in key):
            continue
        key = key.replace("backbone.", "caduceus.backbone.")
        inner = ".embedding" if ps else ""
        name = f"caduceus.backbone.embeddings.word_embeddings{inner}.weight"
        key = key.replace("embedding.weight", name) if key == "embedding.weight" else key
        own = ".submodule" if ps and not fused else ""
        key = key.replace(".norm1.", f".norm{own}.").replace(".norm_f.", f".norm_f{own}.")
        key = key.replace(".mixer.", ".mixer.submodule." if ps else ".mixer.")
        found[key.replace(".fwd.", ".mamba_fwd.").replace(".rev.", ".mamba_rev.")] = value.clone()
    if ps:
        found["caduceus.backbone.embeddings.word_embeddings.complement_map"] = torch.arange(16)
        found["lm_head.complement_map"] = torch.arange(16)
    return found


def doubled(model: MaskedDNAModel, ids: torch.Tensor, fused: bool) -> torch.Tensor:
    """Caduceus-PS as it is published: 2 D channels, the halves turned against each other."""

    def rc(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-2, -1)

    complement = torch.tensor(COMPLEMENT)
    x = torch.cat([model.embedding(ids), rc(model.embedding(complement[ids].flip(-1)))], -1)
    residual = torch.zeros_like(x)
    for layer in model.backbone.residual_layers():
        residual = residual + x
        left, right = residual.chunk(2, -1)
        if fused:
            left, right = right, left
            residual = torch.cat([left, right], -1)
        left, right = layer.norm1(left), rc(layer.norm1(rc(right)))
        x = torch.cat([layer.mixer(left)[0], rc(layer.mixer(rc(right))[0])], -1)
    left, right = (residual + x).chunk(2, -1)
    left, right = model.backbone.norm_f(left), rc(model.backbone.norm_f(rc(right)))
    weight = model.lm_head.weight
    return left @ weight.T + right.flip(-1) @ weight[complement].T


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_published_ps_is_read_and_equal(tmp_path, fused, layers) -> None:
    source = make("ps_swapped" if fused else "ps", layers)
    save_file(published(source, fused, "ps"), tmp_path / "model.safetensors")
    config = {"model_type": "caduceus", "rcps": True, "norm_epsilon": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\nA card.\n")
    task = read_published(tmp_path)
    assert isinstance(task, MaskedLanguageModel)
    assert task.facts["imported"]["license"] == "apache-2.0"
    for length in (1, 30):
        ids = torch.randint(7, 12, (2, length))
        with torch.no_grad():
            expected = doubled(source, ids, fused)
            torch.testing.assert_close(task(ids), expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "config.json").write_text(json.dumps({**config, "rcps": False}))
    with pytest.raises(DataError, match="rcps False"):
        read_published(tmp_path)


def test_published_plain_goes_through_the_command(tmp_path, capsys) -> None:
    source = make("none", norm="layer")
    save_file(published(source, True, "plain"), tmp_path / "model.safetensors")
    out = tmp_path / "ours.safetensors"
    assert main(["genomics", "import", str(tmp_path), "--out", str(out)]) == 0
    assert "licence not stated" in capsys.readouterr().out
    task = read_task(out)
    ids = torch.randint(7, 12, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(task(ids), source(ids), rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="not a CausalLanguageModel"):
        load_model(out)
    broken = {k: v for k, v in published(source, True, "plain").items() if "layers.1" not in k}
    broken["caduceus.backbone.layers.1.norm.weight"] = torch.ones(16)
    save_file(broken, tmp_path / "model.safetensors")
    assert main(["genomics", "import", str(tmp_path), "--out", str(out)]) == 2
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert main(["genomics", "import", str(tmp_path), "--out", str(out)]) == 2
    assert "neither HyenaDNA nor Caduceus" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["hub", "hub checkpointed", "authors", "authors checkpointed"])
def test_all_names_of_hyenadna_are_read(tmp_path, names) -> None:
    from longseq.genomics.task import CausalLanguageModel

    kwargs = {"l_max": 40, "filter_order": 8, "emb_dim": 5}
    tied = "authors" in names
    task = CausalLanguageModel(
        16, 2, "hyena", kwargs, mlp_ratio=2.0, norm="layer", tie_embeddings=tied
    )
    random_weights(task.model)
    start = "model.backbone." if tied else "hyena.backbone."
    state = {}
    for key, value in task.model.state_dict().items():
        key = key.replace("backbone.", start).replace("norm_f", "ln_f")
        key = key.replace("embedding.weight", f"{start}embeddings.word_embeddings.weight")
        if "checkpointed" in names:
            key = key.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer.")
        if key == "lm_head.weight" and tied:
            key = "model.lm_head.weight"
        state[key] = value
    path = tmp_path / ("weights.ckpt" if tied else "pytorch_model.bin")
    torch.save({"state_dict": state} if tied else state, path)
    read = read_published(tmp_path)
    ids = torch.randint(7, 12, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(read.model(ids)[0], task.eval().model(ids)[0])
    assert read.facts["length"] == 40
    out = tmp_path / "o.safetensors"
    assert main(["genomics", "import", str(path), "--out", str(out)]) == 0
    assert load_model(out).window == 40


def test_only_bases_are_hidden_and_always_the_same_in_evaluation() -> None:
    task = MaskedLanguageModel(8, 1, mixer_kwargs=MAMBA, mask=0.3)
    ids = torch.randint(7, 11, (4, 500))
    ids[:, :50], ids[:, -50:] = N, PAD
    seen, targets = task.hide(ids)
    chosen = targets != -100
    assert not chosen[:, :50].any() and not chosen[:, -50:].any()
    assert chosen[:, 50:-50].float().mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(targets[chosen], ids[chosen]) and torch.equal(seen[~chosen], ids[~chosen])
    assert (seen[chosen] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.05)
    assert not torch.equal(task.hide(ids)[0], seen)
    task.eval()
    assert torch.equal(task.hide(ids)[0], task.hide(ids)[0])


def test_it_trains_from_the_command_line(workdir) -> None:
    argv = [
        "genomics",
        "fit",
        "--model=MaskedLanguageModel",
        "--data.fasta=tiny",
        "--model.d_model=8",
        "--model.n_layers=1",
        "--model.symmetry=ps",
        "--data.length=64",
        "--data.batch_size=2",
        "--data.eval_length=256",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--name=m",
        "--trainer.default_root_dir=out",
    ]
    assert main(argv) == 0
    checkpoint = "out/m/version_0/checkpoints/last.ckpt"
    assert main(["genomics", "test", "--ckpt_path", checkpoint]) == 0
