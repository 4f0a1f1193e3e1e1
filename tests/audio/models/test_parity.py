"""SpecTTTra and the front end against the published code (awsaf49/sonics) and torchaudio, live and
frozen.

The live tests run where LONGSEQ_UPSTREAM_SONICS names a checkout and torchaudio and timm are
installed; with it set, running this file as a program writes the frozen numbers again.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from longseq.audio import create_model, list_models
from longseq.audio.features import LogMel, MelPower, unit_gain
from longseq.core.errors import DataError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "sonics.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_SONICS")
MISSING = [] if CHECKOUT else ["LONGSEQ_UPSTREAM_SONICS names no checkout of awsaf49/sonics"]
MISSING += [
    f"{name} is not installed (pip install {name})"
    for name in ("torchaudio", "timm")
    if not importlib.util.find_spec(name)
]
live = pytest.mark.skipif(bool(MISSING), reason=", ".join(MISSING))
# Name → (parameters, temporal tokens, spectral tokens)
SIZES = {
    "spectttra_alpha_5s": (16_828_045, 42, 128),
    "spectttra_alpha_120s": (18_679_693, 1248, 128),
    "spectttra_beta_5s": (16_985_101, 25, 42),
    "spectttra_beta_120s": (21_428_365, 748, 42),
    "spectttra_gamma_5s": (17_172_493, 18, 25),
    "spectttra_gamma_120s": (24_313_357, 534, 25),
}
FROZEN = ("spectttra_alpha_5s", "spectttra_beta_5s", "spectttra_gamma_5s")


def sound(seconds: float) -> Tensor:
    """A chirp, a beating chord and clicks, by formula: (1, N)."""
    t = np.arange(round(seconds * 16000)) / 16000
    x = np.sin(2 * np.pi * (200 * t + 300 * t**2)) + 0.5 * np.sin(2 * np.pi * 440 * t) * np.sin(
        7 * t
    )
    x += 0.3 * (np.arange(len(t)) % 3001 == 0) + 1e-3 * np.sin(1e4 * t**2)
    return torch.from_numpy(0.2 * x).float()[None]


def fill(model: nn.Module) -> nn.Module:
    """Sets every parameter by formula."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            count = torch.arange(parameter.numel(), dtype=torch.float64)
            values = torch.sin(count * (1 + 0.01 * number) + number) * (
                0.05 if parameter.ndim > 1 else 0.2
            )
            parameter.copy_(values.view_as(parameter) + float("norm" in name))
    return model.eval()


def their_model(name: str) -> nn.Module:
    """Builds the published code's model from the published configuration."""
    # For its hub and its loader, which are not needed.
    for module in ("huggingface_hub", "librosa"):
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            stub: Any = types.ModuleType(module)
            stub.HfApi = stub.create_repo = stub.hf_hub_download = None
            sys.modules[module] = stub
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    from sonics.models.model import AudioClassifier  # type: ignore[import-not-found]
    from sonics.utils.config import dict2cfg  # type: ignore[import-not-found]

    _, letter, seconds = name.split("_")
    clips = {"alpha": "f1t3", "beta": "f3t5", "gamma": "f5t7"}[letter]
    config = Path(CHECKOUT) / "configs" / f"spectttra_{clips}-{seconds}.yaml"
    return AudioClassifier(dict2cfg(yaml.safe_load(config.read_text()))).eval()


def close(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("name", sorted(SIZES))
def test_parameters_and_tokens_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name][0]
    assert model.tokens == SIZES[name][1:]
    assert set(SIZES) == set(list_models("spectttra*"))


@live
@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_published_code_gives_the_same_logit(name: str, tmp_path: Path) -> None:
    theirs = fill(their_model(name))
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = create_model(name, checkpoint=tmp_path).eval()
    audio = unit_gain(sound(ours.seconds))
    with torch.no_grad():
        assert close(ours.ft_extractor(audio), theirs.ft_extractor(audio)) < 1e-4
        assert close(ours(audio), theirs(audio)[:, 0]) < 1e-4


@live
def test_the_mel_filters_and_window_are_torchaudio_s() -> None:
    theirs = their_model("spectttra_gamma_5s").state_dict()
    for name, value in MelPower().state_dict().items():
        assert torch.equal(value, theirs[f"ft_extractor.audio2melspec.{name}"])


def test_the_front_end_gives_the_frozen_numbers_of_torchaudio() -> None:
    with np.load(FIXTURE) as frozen:
        found = LogMel()(sound(5.0))[0]
        assert found.shape == (128, 157)
        assert np.abs(found[:, ::12].numpy() - frozen["logmel"]).max() < 1e-4


@pytest.mark.parametrize("name", FROZEN)
def test_the_frozen_logits_of_the_published_code(name: str) -> None:
    model = fill(create_model(name))
    with np.load(FIXTURE) as frozen, torch.no_grad():
        assert abs(float(model(sound(5.0))) - float(frozen[name])) < 1e-4


def test_published_weights_are_read_strictly(tmp_path: Path) -> None:
    state = create_model("spectttra_gamma_5s").state_dict()
    assert {k for k in state if not k.startswith("encoder.transformer")} == {
        "ft_extractor.audio2melspec.spectrogram.window",
        "ft_extractor.audio2melspec.mel_scale.fb",
        "classifier.weight",
        "classifier.bias",
        *(
            f"encoder.st_tokenizer.{way}_tokenizer.{part}"
            for way in ("temporal", "spectral")
            for part in ("conv1d.weight", "pos_encoder.pe", "norm_pre.weight", "norm_pre.bias")
        ),
    }
    file = tmp_path / "pytorch_model.bin"
    torch.save(
        {k: v for k, v in state.items() if k != "classifier.bias"} | {"extra": torch.ones(1)}, file
    )
    with pytest.raises(DataError, match=r"missing: classifier\.bias; unexpected: extra"):
        create_model("spectttra_gamma_5s", checkpoint=file)
    torch.save(state, file)
    with pytest.raises(DataError, match="of another shape"):
        create_model("spectttra_gamma_120s", checkpoint=tmp_path)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no file of weights, or is damaged"):
        create_model("spectttra_gamma_5s", checkpoint=tmp_path)


def write_fixture() -> None:
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram  # type: ignore[import-not-found]

    mel = MelSpectrogram(16000, n_fft=2048, hop_length=512, n_mels=128, f_min=20, f_max=8000)
    db = AmplitudeToDB(top_db=80)(mel(sound(5.0)))
    logmel = ((db - db.mean()) / (db.std() + 1e-6))[0, :, ::12].numpy()
    with torch.no_grad():
        logits = {
            name: np.float32(float(fill(their_model(name))(unit_gain(sound(5.0)))))
            for name in FROZEN
        }
    np.savez_compressed(FIXTURE, logmel=logmel, **logits)


if __name__ == "__main__":
    write_fixture()
