"""Separation: models of any length and level, mixtures split by speaker, the voices of a stream."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.export import (
    PACKAGED,
    export,
    load_detector,
    load_separator,
)
from longseq.audio.separation.mixtures import SpeechMixtures, Voices, speakers_of
from longseq.audio.separation.models import SEPARATORS, create_separator
from longseq.audio.separation.separate import separate_stream, twice
from longseq.audio.separation.task import (
    Improvement,
    VoiceSeparator,
    best_si_sdr,
    mean_of,
    oracle_masks,
)
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main

RATE = 8000
SMALL = {"width": 16, "filters": 16}
SPECTRAL = {"width": 16, "n_heads": 2, "window": 32}
MEMBERS = [
    {"model": "mossformer", "model_kwargs": SMALL},
    {"model": "spectral", "model_kwargs": SPECTRAL},
]


@pytest.fixture
def speech(tmp_path, tune):
    """Eight speakers of two recordings; one is shorter than a mixture."""
    root = tmp_path / "speech"
    for i in range(8):
        (root / f"s{i}").mkdir(parents=True)
        for j, seconds in enumerate((1.5, 0.3)):
            soundfile.write(root / f"s{i}" / f"{j}.wav", tune(10 * i + j, seconds, RATE), RATE)
    return root


@pytest.mark.parametrize("name", list(SEPARATORS))
def test_any_length_and_level(name):
    torch.manual_seed(0)
    own = {"spectral": SPECTRAL, "mean": {"members": MEMBERS}}
    model = create_separator(name, **own.get(name, SMALL)).double()
    for length in (1, 5, 16, 17, 1001):
        x = torch.randn(2, length, dtype=torch.float64)
        y = model(x)
        assert y.shape == (2, 2, length) and y.isfinite().all()
        torch.testing.assert_close(model(100 * x), 100 * y, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(model(x[1:]), y[1:], rtol=1e-9, atol=1e-9)
    shared = ((x - y.sum(1)) * y.sum(1)).mean(1)  # least squares: the rest holds none of the sum
    torch.testing.assert_close(shared, torch.zeros_like(shared), atol=1e-9, rtol=0)
    assert not model(torch.zeros(1, 50, dtype=torch.float64)).any()
    model(x).square().sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())


def test_a_mean_is_of_voices_in_one_order_and_refuses_what_cannot_be_averaged():
    torch.manual_seed(0)
    tasks = [VoiceSeparator(one["model"], one["model_kwargs"]) for one in MEMBERS]
    for task in tasks:
        task.model.double()
        torch.nn.init.normal_(task.model.after.weight)
    mean = mean_of(tasks)
    mean.model.double().load_state_dict(
        {
            f"members.{i}.{name}": value
            for i, task in enumerate(tasks)
            for name, value in task.model.state_dict().items()
        }
    )
    x = torch.randn(8, 400, dtype=torch.float64)
    first, second = (task.model(x) for task in tasks)
    turned = []
    for row in range(8):
        one, other = first[row], second[row]
        straight, crossed = (one * other).sum(), (one * other.flip(0)).sum()
        turned.append(bool(crossed > straight))
        both = one + (other.flip(0) if turned[-1] else other)
        total = both.sum(0)
        wanted = both * (total @ x[row]) / (total @ total)
        torch.testing.assert_close(mean.model(x)[row], wanted, rtol=1e-9, atol=1e-9)
    assert True in turned and False in turned
    # Half of it, the second pass of `twice`, is a whole number of no member's steps.
    assert (mean.model.stride, create_separator("mean").stride) == (8, 8 + 64)
    with pytest.raises(ConfigError, match="of one number of voices and one rate"):
        mean_of([tasks[0], VoiceSeparator("spectral", SPECTRAL, sample_rate=16000)])


def test_a_ceiling_leaves_what_is_told_apart_alone(monkeypatch):
    torch.manual_seed(0)
    task = VoiceSeparator("spectral", model_kwargs=SPECTRAL, ceiling=10.0)
    voices = torch.randn(2, 2, 500)
    noise = torch.tensor([0.1, 1.0])[:, None, None] * torch.randn(2, 2, 500)
    estimate = (voices + noise).requires_grad_()  # 20 dB and 0 dB
    monkeypatch.setattr(task, "forward", lambda mixture: estimate)
    batch = {"mixture": voices.sum(1), "voices": voices}
    loss = task.train().compute(batch)["loss"]
    loss.backward()
    ratio = best_si_sdr(estimate.detach(), voices)
    assert ratio[0] > 15 and ratio[1] < 5
    torch.testing.assert_close(loss.detach(), -(10 + ratio[1]) / 2)
    assert not estimate.grad[0].any() and estimate.grad[1].any()
    torch.testing.assert_close(task.eval().compute(batch)["loss"].detach(), -ratio.mean())


def test_a_separator_in_half_precision_is_half_the_file(tmp_path):
    torch.manual_seed(0)
    task = VoiceSeparator("spectral", model_kwargs={**SPECTRAL, "width": 64})
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    export(task, whole)
    export(task, half, torch.float16)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    x = torch.randn(1, 500)
    loaded = load_separator(half)
    assert {one.dtype for one in loaded.model.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(x), task.eval()(x), rtol=1e-2, atol=1e-2)
    assert not torch.equal(loaded(x), task(x))
    again = tmp_path / "again.safetensors"  # of what was exported before
    command = ["audio", "export", "--ckpt_path", str(whole), "--out", str(again)]
    assert main([*command, "--dtype", "float16"]) == 0
    torch.testing.assert_close(load_separator(again)(x), loaded(x), rtol=0, atol=0)


def test_the_improvement_is_of_the_best_order():
    generator = torch.Generator().manual_seed(0)
    voices = torch.randn(3, 2, 4000, generator=generator)
    mixture = voices.sum(1)
    metric = Improvement()
    metric.update(mixture.unsqueeze(1).expand_as(voices), voices, mixture)
    assert abs(float(metric.compute())) < 1e-4
    noisy = voices + 0.1 * torch.randn(3, 2, 4000, generator=generator)
    torch.testing.assert_close(best_si_sdr(noisy.flip(1) * 3, voices), best_si_sdr(noisy, voices))
    assert best_si_sdr(noisy, voices).min() > 18
    time = torch.arange(8000) / RATE
    tones = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (440.0, 1700.0)])[None]
    masked = oracle_masks(tones.sum(1), tones)
    assert best_si_sdr(masked, tones) > 20


def test_mixtures_are_a_function_of_their_number_and_no_speaker_is_in_two_parts(speech):
    data = SpeechMixtures(str(speech), seconds=0.5, n_valid=5, eval_batch_size=2)
    parts = data.speakers
    assert sorted(name for names in parts.values() for name in names) == [f"s{i}" for i in range(8)]
    assert [len(parts[part]) for part in ("train", "valid", "test")] == [4, 2, 2]
    train = data.mixtures("train")
    batch = train[3]
    assert batch["voices"].shape == (4, 2, 4000)
    torch.testing.assert_close(batch["mixture"], batch["voices"].sum(1))
    assert all(torch.equal(train[3][key], batch[key]) for key in batch)
    assert not torch.equal(train[4]["mixture"], batch["mixture"])
    valid = data.mixtures("valid")
    one_by_one = SpeechMixtures(str(speech), seconds=0.5, n_valid=5, eval_batch_size=1)
    alone = one_by_one.mixtures("valid")
    assert len(valid) == 3 and len(alone) == 5 and len(valid[2]["mixture"]) == 1
    assert torch.equal(torch.cat([alone[i]["mixture"] for i in range(2)]), valid[0]["mixture"])


def test_training_pieces_at_other_speeds(tmp_path):
    time = np.arange(2 * RATE) / RATE
    for i in range(4):
        (tmp_path / f"s{i}").mkdir()
        soundfile.write(tmp_path / f"s{i}" / "0.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), RATE)
    same = {"source": str(tmp_path), "seconds": 1.0, "valid_fraction": 0.5, "test_fraction": 0.0}
    quick, plain = SpeechMixtures(**same, speed=0.2), SpeechMixtures(**same)
    batches = [quick.mixtures("train")[i] for i in range(4)]
    voices = torch.cat([one["voices"].flatten(0, 1) for one in batches])
    assert voices.shape == (32, RATE) and voices.isfinite().all()
    heard = voices.numpy() * np.hanning(RATE)
    pitch = np.abs(np.fft.rfft(heard)).argmax(1)  # Hz, for a second of sound
    assert pitch.min() >= 798 and pitch.max() <= 1202 and pitch.max() - pitch.min() > 200
    again = quick.mixtures("train")[3]["mixture"]
    assert torch.equal(again, batches[3]["mixture"])
    for part, speeds in (("valid", quick), ("train", plain)):  # neither is changed
        voices = speeds.mixtures(part)[0]["voices"].flatten(0, 1).numpy() * np.hanning(RATE)
        assert set(np.abs(np.fft.rfft(voices)).argmax(1)) == {1000}
    with pytest.raises(ConfigError, match="speed must be"):
        SpeechMixtures(**same, speed=1.0)


def test_training_voices_have_either_sign(tmp_path):
    for i in range(4):
        (tmp_path / f"s{i}").mkdir()
        comb = np.zeros(2 * RATE)
        comb[:: 20 + i] = 1.0
        soundfile.write(tmp_path / f"s{i}" / "0.wav", comb - 0.1, RATE)  # its peaks have a sign
    data = SpeechMixtures(
        str(tmp_path), seconds=0.1, valid_fraction=0.5, test_fraction=0.0, batch_size=200
    )
    batch = data.mixtures("train")[0]
    voices = batch["voices"]
    torch.testing.assert_close(batch["mixture"], voices.sum(1))
    signs = torch.where(voices.amax(-1) > -voices.amin(-1), 1, -1)
    assert signs.float().mean(0).abs().max() < 0.25  # 3.5 standard errors
    assert abs(signs.prod(1).float().mean()) < 0.25  # each voice has a sign of its own
    plain = data.mixtures("train")
    plain.signs = False
    torch.testing.assert_close(plain[0]["voices"], voices * signs.unsqueeze(-1))  # else the same
    voices = data.mixtures("valid")[0]["voices"]  # as they were recorded
    assert (voices.amax(-1) > -voices.amin(-1)).all()


def test_weights_say_how_often_speakers_are_drawn(tmp_path):
    for i, name in enumerate(("one-a", "one-b", "two-a", "two-b", "two-c")):
        (tmp_path / name).mkdir()
        tone = np.sin(np.arange(RATE) * (0.2 + 0.2 * i))
        soundfile.write(tmp_path / name / "0.wav", tone, RATE)
    same = {"source": str(tmp_path), "seconds": 0.1, "valid_fraction": 0.0, "test_fraction": 0.0}

    def shares(weights):
        data = SpeechMixtures(**same, batch_size=400, weights=weights)
        mixtures = data.mixtures("train")
        voices = mixtures[0]["voices"].flatten(0, 1)
        rates = np.abs(np.fft.rfft(voices, axis=-1)).argmax(-1) * 2 * np.pi / voices.shape[-1]
        found = np.round((rates - 0.2) / 0.2).astype(int).reshape(-1, 2)
        assert (found[:, 0] != found[:, 1]).all()
        return [float(np.mean(found < 2)), float(np.mean((found < 2).all(1)))]

    everyone, pairs = shares(None)  # 2 of 5, and 1 of 10 pairs
    assert abs(everyone - 0.4) < 0.06 and abs(pairs - 0.1) < 0.05
    weighted, pairs = shares({"one": 0.25})  # first 1/7, then 1/13 or 1/5
    first, second = 0.5 / 3.5, (0.5 / 3.5) * (0.25 / 3.25) + (3 / 3.5) * (0.5 / 2.5)
    assert abs(weighted - (first + second) / 2) < 0.05
    assert abs(pairs - first * 0.25 / 3.25) < 0.03
    with pytest.raises(ConfigError, match="weights must be positive"):
        SpeechMixtures(**same, weights={"one": 0.0})
    SpeechMixtures(**same, weights={"one": 0.5}).setup("fit")
    with pytest.raises(ConfigError, match=r"no speaker in .* begins with 'esp-'"):
        SpeechMixtures(**same, weights={"one": 0.5, "esp-": 0.5}).setup("fit")
    other = {**same, "test_fraction": 0.5}
    SpeechMixtures(**other, weights={"esp-": 0.5}).setup(
        "test"
    )  # of other data than was learnt from
    with pytest.raises(ConfigError, match=r"got 0.1 and -1"):
        SpeechMixtures(**same, level=-1.0)


def test_folders_that_cannot_serve(speech, tmp_path):
    with pytest.raises(DataError, match="too few for mixtures of 4"):
        SpeechMixtures(str(speech), voices=4).setup("fit")
    flat = speech / "s0"
    with pytest.raises(DataError, match="expected <speaker>/"):
        SpeechMixtures(str(flat)).setup("fit")
    soundfile.write(speech / "s1" / "0.wav", np.zeros(4000), RATE)
    (speech / "s1" / "1.wav").unlink()
    data = SpeechMixtures(str(speech))
    part = next(part for part, names in data.speakers.items() if "s1" in names)
    with pytest.raises(DataError, match="every recording of this speaker is silent"):
        data.part(part)


class Halves:
    """Splits a recording into its positive and its negative samples, in another order each time."""

    sample_rate, device, model = 100, torch.device("cpu"), SimpleNamespace(stride=8)

    def __init__(self):
        self.calls = 0

    def __call__(self, audio):
        self.calls += 1
        parts = torch.stack([audio.clamp(min=0), audio.clamp(max=0)], 1)
        return parts.flip(1) if self.calls % 3 == 2 else parts


@pytest.mark.parametrize("length", [1, 299, 300, 301, 400, 1000])
@pytest.mark.parametrize("chunk", [7, 5000])
def test_a_stream_keeps_the_voices_in_order(length, chunk):
    audio = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    audio[1::2] = -audio[: length // 2 * 2 : 2]  # so that the mean of every window is zero
    audio[length // 2 * 2 :] = 0
    chunks = (audio[i : i + chunk] for i in range(0, length, chunk))
    parts = list(separate_stream(Halves(), chunks, seconds=3.0, overlap=1.0))
    voices = np.concatenate(parts, 1)
    np.testing.assert_allclose(voices[0], np.maximum(audio, 0), atol=1e-6)
    np.testing.assert_allclose(voices[1], np.minimum(audio, 0), atol=1e-6)
    assert not list(separate_stream(Halves(), iter(()), seconds=3.0, overlap=1.0))


@pytest.mark.parametrize("level", [2.0**-100, 2.0**100])
def test_the_order_is_kept_at_any_level(level):
    """Squares of such samples leave the range of single precision."""
    audio = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * np.float32(level)
    audio[1::2] = -audio[::2]
    voices = np.concatenate(list(separate_stream(Halves(), iter([audio]), seconds=3.0)), 1)
    np.testing.assert_allclose(voices[0] / level, np.maximum(audio, 0) / level, atol=1e-6)


def test_two_passes_are_averaged_voice_by_voice():
    class Shifted(Halves):
        def __call__(self, audio):
            return super().__call__(audio) + 0.1 * self.calls

    audio = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    found, once = twice(Shifted(), audio), Halves()(audio)  # the second pass turns the order over
    torch.testing.assert_close(found, once + 0.15, atol=1e-6, rtol=0)


def test_fit_test_and_separate(speech, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--model.model_kwargs", "{width: 8, filters: 16, n_layers: 1, chunk: 32}"]
    data = ["--data.source", str(speech), "--data.seconds=0.5", "--data.n_valid=2"]
    steps = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.n_test=3"]
    assert main(["audio", "fit", "--config", "separation", *small, *data, *steps, "--name=a"]) == 0
    file = str(next(tmp_path.rglob("best.ckpt")))
    assert main(["audio", "test", "--ckpt_path", file]) == 0
    told = capsys.readouterr().out
    assert "test/si_sdri" in told and "test/si_sdri_of_ideal_masks" in told
    both = tmp_path / "in"
    both.mkdir()
    tune = np.sin(np.arange(5000) / 5).astype(np.float32)
    for name in ("a.wav", "a.flac", "b.wav"):
        soundfile.write(both / name, tune, RATE)
    (both / "bad.wav").write_bytes(b"RIFF")
    assert main(["audio", "separate", str(both), "--out", "out", "--ckpt_path", file]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    wanted = ["a.flac", "a.wav", "b"]
    assert names == [f"{name}_voice{i}.wav" for name in wanted for i in (1, 2)]
    assert soundfile.info(tmp_path / "out" / "b_voice1.wav").frames == 5000
    assert main(["audio", "export", "--ckpt_path", file, "--out", "s.safetensors"]) == 0
    bare = [str(both / "a.wav"), "--out", "bare", "--ckpt_path", "s.safetensors"]
    assert main(["audio", "separate", *bare]) == 0
    for i in (1, 2):
        first, _ = soundfile.read(tmp_path / "out" / f"a.wav_voice{i}.wav")
        second, _ = soundfile.read(tmp_path / "bare" / f"a_voice{i}.wav")
        np.testing.assert_array_equal(first, second)
    with pytest.raises(DataError, match="holds no separator"):
        load_separator(PACKAGED)
    with pytest.raises(DataError, match="holds no detector"):
        load_detector("s.safetensors")
    for seconds in ("1", "1.00001", "1e308"):  # the second never ended
        with pytest.raises(ConfigError, match=r"--seconds must be 1\.1 "):
            from longseq.audio.separation.separate import run

            run([str(both), "--out", "out", "--ckpt_path", file, "--seconds", seconds])


def test_the_recipe_of_the_packaged_separator(speech, tmp_path, monkeypatch):
    """What audio/checkpoints/SEPARATOR.md says: the average of the weights is what is kept."""
    monkeypatch.chdir(tmp_path)
    model = "{width: 16, n_layers: 1, n_heads: 2, window: 32}"
    fit = ["audio", "fit", "--config", "spectral_separation", "--data.source", str(speech)]
    fit += ["--model.model_kwargs", model, "--trainer.callbacks.decay=0.5", "--name=a"]
    fit += ["--data.seconds=0.5", "--data.n_valid=2", "--trainer.max_steps=4"]
    assert main([*fit, "--trainer.val_check_interval=2"]) == 0
    file = next(tmp_path.rglob("last.ckpt"))
    held = torch.load(file, weights_only=True)
    average, own = held["state_dict"], held["current_model_state"]
    assert any(not torch.equal(average[name], own[name]) for name in average)
    out = ["--out", "s.safetensors", "--dtype", "float16"]
    assert main(["audio", "export", "--ckpt_path", str(file), *out]) == 0
    loaded = load_separator("s.safetensors").model.state_dict()
    for name, value in loaded.items():
        torch.testing.assert_close(value, average[f"model.{name}"], rtol=1e-3, atol=1e-6)
    both = ["--ckpt_path", "s.safetensors", "--mean", str(file), "--out", "both.safetensors"]
    assert main(["audio", "export", *both]) == 0
    mean = load_separator("both.safetensors").model
    for name, value in loaded.items():
        assert torch.equal(mean.members[0].state_dict()[name], value)
        assert torch.equal(mean.members[1].state_dict()[name], average[f"model.{name}"])


def test_short_recordings_follow_each_other(tmp_path):
    """A list of words is as good as long recordings: pieces are mostly sound."""
    names = {"word": [0.3, 0.5], "blip": [2 / RATE], "long": [3.0]}
    for name, lengths in names.items():
        (tmp_path / name).mkdir()
        for i, seconds in enumerate(lengths):
            audio = np.resize([0.5, -0.5], round(seconds * RATE))
            soundfile.write(tmp_path / name / f"{i}.wav", audio, RATE)
    voices = Voices(speakers_of(tmp_path), RATE)
    for speaker, name in enumerate(voices.names):
        rng = np.random.default_rng(1)
        pieces = np.stack([voices.piece(speaker, 2 * RATE, rng) for _ in range(20)])
        assert pieces.shape == (20, 2 * RATE) and pieces.dtype == np.float32
        share = (pieces != 0).mean(1)
        least = {"word": 0.6, "blip": 0.0, "long": 0.99}[name]
        assert share.min() >= least and share.max() > least


def test_offset_and_level_of_training_voices(tmp_path, tune):
    """A constant of a sound card is no voice, and neither it nor any level changes what is learnt
    from; a recording of nothing else is silent."""
    plain = 0.3 * tune(0, 2.0, RATE)
    plain -= plain.mean()
    kinds = {"a": plain, "b": 0.5 * plain + 0.4, "c": 1e-25 * plain, "d": 1e25 * plain}
    for name, audio in kinds.items():
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "0.wav", audio, RATE, "FLOAT")
    voices = Voices(speakers_of(tmp_path), RATE)
    first, *others = (own[0] for own in voices.recordings)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)
    assert abs(first.std() - 1) < 1e-3
    (tmp_path / "e").mkdir()
    soundfile.write(tmp_path / "e" / "0.wav", np.full(RATE, 0.1), RATE, "FLOAT")
    with pytest.raises(DataError, match="every recording of this speaker is silent"):
        Voices(speakers_of(tmp_path), RATE)
