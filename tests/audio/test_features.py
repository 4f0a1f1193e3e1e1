"""The front end: gain, neighbours, streams, filters; parity with torchaudio is in
models/test_parity.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.audio.features import (
    BlockStream,
    LogMel,
    MelPower,
    mel_filters,
    normalise_blocks,
    unit_gain,
)
from longseq.core.errors import ArgumentError, ConfigError

SMALL = {"n_fft": 256, "hop": 64, "n_mels": 16}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_filters_are_triangles_of_height_one() -> None:
    bank = mel_filters(8192, 20, 100.0, 8000.0, 16000)
    assert bank.shape == (4097, 20) and bank.min() == 0
    assert bank.max() == pytest.approx(1.0, abs=0.05)
    # Neighbouring triangles overlap so that they add up to one between the first and the last
    # centre.
    first, last = bank[:, 0].argmax(), bank[:, -1].argmax()
    assert torch.allclose(bank[first:last].sum(1), torch.ones(last - first), atol=1e-4)
    with pytest.raises(ConfigError, match="f_max"):
        mel_filters(256, 20, 100.0, 9000.0, 16000)


def test_a_tone_is_in_its_band() -> None:
    mel = MelPower()
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)[None]
    centres = 700 * (10 ** (torch.linspace(31.75, 2840.0, 130)[1:-1] / 2595) - 1)
    assert (centres[mel(tone)[0].mean(1).argmax()] - 1000).abs() < 30


def test_power_is_that_of_torch_stft() -> None:
    mel, audio = MelPower(), noise(2, 20000)
    window = mel.spectrogram.window
    spectrum = torch.stft(audio, 2048, 512, window=window, return_complex=True).abs().square()
    expected = mel.mel_scale.fb.T @ spectrum
    assert torch.allclose(mel(audio), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(exponent=st.integers(-20, 10), factor=st.floats(0.5, 2.0))
def test_gain_changes_nothing(exponent: int, factor: float) -> None:
    audio, log_mel = noise(1, 9000).cumsum(1), LogMel(**SMALL)
    mel = MelPower(**SMALL)

    def blocks(x):
        return normalise_blocks(mel(x).transpose(1, 2), 32)

    exact, any_gain = audio * 2.0**exponent, audio * factor
    # A power of two changes no mantissa: exactly nothing changes.
    assert torch.equal(blocks(audio), blocks(exact))
    assert (blocks(audio) - blocks(any_gain)).abs().max() < 1e-4
    assert (log_mel(unit_gain(audio)) - log_mel(unit_gain(any_gain))).abs().max() < 1e-4


def test_a_neighbour_changes_nothing() -> None:
    quiet, loud = noise(1, 9000), 1e4 * noise(1, 9000, seed=1)
    log_mel = LogMel(**SMALL)
    assert torch.allclose(log_mel(torch.cat((quiet, loud)))[:1], log_mel(quiet), atol=1e-5)


def test_silence_is_zeros_and_too_short_audio_is_refused() -> None:
    mel = MelPower(**SMALL)
    assert (normalise_blocks(mel(torch.zeros(1, 3000)).transpose(1, 2), 8) == 0).all()
    assert torch.equal(unit_gain(torch.zeros(1, 10)), torch.zeros(1, 10))
    with pytest.raises(ArgumentError, match="N ≥ 129"):
        mel(torch.zeros(1, 128))


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 6000),
    seed=st.integers(0, 5),
    block=st.integers(2, 20),
    hop=st.integers(50, 256),
)
def test_a_stream_gives_the_frames_of_the_whole(
    length: int, seed: int, block: int, hop: int
) -> None:
    mel, audio = MelPower(**{**SMALL, "hop": hop}), noise(length, seed=seed)
    padded = torch.nn.functional.pad(audio, (0, max(0, mel.shortest - length)))
    centre = bool(seed % 2)
    whole = normalise_blocks(mel(padded[None]).transpose(1, 2), block, centre)
    stream, parts, start = BlockStream(mel, block, centre), [], 0
    sizes = torch.randint(1, 700, (6000,), generator=torch.Generator().manual_seed(seed)).tolist()
    for size in sizes:
        if start >= length:
            break
        parts += stream.push(audio[start : start + size])
        start += size
    parts += stream.finish()
    assert torch.allclose(torch.cat(parts, 1), whole, atol=2e-4)


def test_a_stream_of_nothing_is_nothing() -> None:
    assert BlockStream(MelPower(**SMALL), 8).finish() == []
    with pytest.raises(ConfigError, match="hop"):
        BlockStream(MelPower(n_fft=256, hop=300, n_mels=16), 8)
