"""Who speaks when: order of the candidates, windows, definitions of the metrics, RTTM."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.speakers.conversations import SpeechConversations, active_frames
from longseq.audio.speakers.listen import _through, enrolled, probabilities, turns, write_rttm
from longseq.audio.speakers.loconet import LoCoNet
from longseq.audio.speakers.task import ActiveSpeakers, DiarisationError, similarity
from longseq.core.errors import ArgumentError, DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task

RATE = 8000
SMALL = {"width": 8, "n_layers": 1, "n_mels": 12}


@pytest.fixture
def speech(tmp_path, tune):
    root = tmp_path / "speech"
    for i in range(10):
        (root / f"s{i}").mkdir(parents=True)
        soundfile.write(root / f"s{i}" / "a.wav", tune(i, 2.0, RATE), RATE)
    return root


def test_no_order_of_the_candidates_and_no_neighbour_in_the_batch_changes_a_thing():
    torch.manual_seed(0)
    model = LoCoNet(**SMALL).double()
    audio = torch.randn(2, 3210, dtype=torch.float64)
    voices = torch.randn(2, 3, 2000, dtype=torch.float64)
    y = model(audio, voices)
    assert y.shape == (2, 3, model.frames(3210)) == (2, 3, 20)
    order = [2, 0, 1]
    torch.testing.assert_close(model(audio, voices[:, order]), y[:, order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(audio[1:], voices[1:]), y[1:], rtol=1e-5, atol=1e-5)
    # The mel power is float32.
    torch.testing.assert_close(model(100 * audio, voices), y, rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in model.parameters())


@pytest.mark.parametrize("samples", [160, 161, 500])
def test_a_single_speaker_silence_and_the_shortest_recording(samples):
    model = LoCoNet(**SMALL)
    y = model(torch.zeros(1, samples), torch.zeros(1, 1, 160))
    assert y.shape == (1, 1, samples // 160) and y.isfinite().all()
    with pytest.raises(ArgumentError, match="at least 160 samples"):
        model(torch.zeros(1, 159), torch.zeros(1, 1, 160))
    with pytest.raises(ArgumentError, match="must be odd"):
        LoCoNet(kernel=4)


def test_conversations_are_a_function_of_their_number(speech):
    data = SpeechConversations(str(speech), seconds=3.0, n_valid=3, eval_batch_size=2)
    batch = data.mixtures("train")[5]
    assert batch["audio"].shape == (4, 24000) and batch["heard"].shape == (4, 3, 150)
    again = data.mixtures("train")[5]
    assert all(torch.equal(again[key], value) for key, value in batch.items())
    assert 0.05 < batch["heard"].float().mean() < 0.8 and batch["heard"].any(2).any(1).all()
    assert len(data.mixtures("valid")[1]["audio"]) == 1


def test_frames_of_speech_are_those_with_sound():
    voice = np.zeros(1700, np.float32)
    voice[320:640] = 0.3
    assert active_frames(voice, 160).tolist() == [False, False, True, True] + [False] * 6
    assert not active_frames(np.zeros(480, np.float32), 160).any()


def test_the_diarisation_error_is_its_definition():
    heard = torch.tensor([[[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]], dtype=torch.bool)
    said = torch.tensor([[[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]]], dtype=torch.float32)
    metric = DiarisationError()
    metric.update(said, said, heard)
    # One missed in frame 1, one confused for none in frame 2, one false alarm in frame 4; 4 frames.
    assert float(metric.compute()) == 3 / 4
    metric.reset()
    metric.update(heard.float(), said, heard)
    assert float(metric.compute()) == 0


def test_the_plain_similarity_knows_who_is_heard():
    torch.manual_seed(0)
    voices = torch.randn(1, 2, 12, 1).expand(-1, -1, -1, 80) + 0.1 * torch.randn(1, 2, 12, 80)
    level = torch.cat([voices[:, 0], voices[:, 1]], -1)
    score = similarity(level, voices)
    assert (score[0, 0, :50] > score[0, 1, :50]).all()
    assert (score[0, 1, -50:] > score[0, 0, -50:]).all()


def test_windows_cover_every_frame_once_and_agree():
    torch.manual_seed(0)
    task = ActiveSpeakers(SMALL).eval()
    rng = np.random.default_rng(0)
    audio = rng.standard_normal(20 * RATE + 77).astype(np.float32)
    voices = rng.standard_normal((2, RATE)).astype(np.float32)
    power = float(np.square(audio).mean())
    whole = np.concatenate(list(probabilities(task, iter([audio]), voices, power, 60.0)), 1)
    assert whole.shape == (2, 1000)
    pieces = np.split(audio, [5, 4000, 4001, 90000])
    parts = np.concatenate(list(probabilities(task, iter(pieces), voices, power, 3.0)), 1)
    assert parts.shape == whole.shape and np.abs(parts - whole).max() < 0.05
    assert not list(probabilities(task, iter([audio[:100]]), voices, power))
    assert not list(probabilities(task, iter([]), voices, power))


def test_turns_fill_short_pauses_and_drop_blips(tmp_path):
    p = np.zeros((2, 100))
    p[0, 10:30] = p[0, 36:50] = 0.9
    p[1, 40:43] = p[1, 60:90] = 0.9
    found = turns(p, ["Ann", "Bo B"], 0.02)
    assert [(round(a, 2), round(b, 2), who) for a, b, who in found] == [
        (0.2, 1.0, "Ann"),
        (1.2, 1.8, "Bo B"),
    ]
    write_rttm(tmp_path / "y.rttm", os.fsdecode(b"caf\xe9"), [(0.0, 1.0, os.fsdecode(b"Ren\xe9"))])
    assert r" Ren\xe9 " in (tmp_path / "y.rttm").read_text()
    write_rttm(tmp_path / "x.rttm", "my file", found)
    lines = (tmp_path / "x.rttm").read_text().splitlines()
    assert lines[1] == "SPEAKER my_file 1 1.20 0.60 <NA> <NA> Bo_B <NA> <NA>"
    assert all(len(line.split()) == 10 for line in lines)


def test_from_training_to_rttm(speech, tmp_path, capsys):
    command = ["audio", "fit", "--config", "speakers", "--data.source", str(speech)]
    command += [f"--model.model_kwargs={SMALL}", "--data.seconds=1.0", "--data.n_valid=2"]
    command += ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}", "--name=run"]) == 0
    (best,) = tmp_path.glob("run/version_0/checkpoints/best.ckpt")
    known = tmp_path / "known"
    (known / "Bo").mkdir(parents=True)
    soundfile.write(known / "Ann.wav", soundfile.read(speech / "s1" / "a.wav")[0], RATE)
    soundfile.write(known / "Bo" / "1.wav", soundfile.read(speech / "s2" / "a.wav")[0], RATE)
    bad = tmp_path / "meetings"
    bad.mkdir()
    (bad / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(bad / "m.flac", soundfile.read(speech / "s1" / "a.wav")[0], RATE)
    command = ["audio", "speakers", str(bad), "--voices", str(known), "--ckpt_path", str(best)]
    soundfile.write(bad / "silent.wav", np.zeros(RATE), RATE)
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert "silent.wav: is silent" in shown.err and "m.flac" not in shown.err
    assert "note: " in shown.err and "broken.wav" in shown.err and "Ann" in shown.out
    assert (tmp_path / "out" / "m.flac.rttm").is_file()
    assert main([*command, "--out", str(bad / "m.flac")]) == 2
    assert "is a file, a folder is needed" in capsys.readouterr().err
    assert set(enrolled(known, RATE)) == {"Ann", "Bo"}
    assert "is known by" not in capsys.readouterr().err
    offset = bad / "offset"  # a constant of a sound card changes nothing
    offset.mkdir()
    audio, _ = soundfile.read(bad / "m.flac")
    soundfile.write(offset / "m.wav", audio, RATE, "FLOAT")
    soundfile.write(offset / "n.wav", 0.5 * audio + 0.4, RATE, "FLOAT")
    soundfile.write(offset / "o.wav", np.full(RATE, 0.1), RATE, "FLOAT")
    voices, task = np.stack(list(enrolled(known, RATE).values())), load_task(best, ActiveSpeakers)
    plain, moved, constant = (_through(task.eval(), offset / f"{n}.wav", voices, 30) for n in "mno")
    np.testing.assert_allclose(moved[0][0], plain[0][0], atol=0.02)
    assert constant[1] == ["is silent"]
    short = tmp_path / "short"
    short.mkdir()
    soundfile.write(short / "Al.wav", audio[: RATE // 5], RATE)
    soundfile.write(short / "Bea.wav", np.concatenate([np.zeros(RATE), audio]), RATE)
    with pytest.raises(DataError, match=r"the first 0\.20 s of the recordings of 'Bea' are silent"):
        enrolled(short, RATE)
    assert "known by 0.20 s alone, as no more is there of 'Al'" in capsys.readouterr().err
    soundfile.write(known / "Bo" / "1.wav", np.zeros(4000), RATE)
    with pytest.raises(DataError, match="'Bo' are silent"):
        enrolled(known, RATE)
