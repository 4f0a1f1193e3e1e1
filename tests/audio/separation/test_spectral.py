"""The separator on the spectrum: block, attention and masks against their definitions."""

from __future__ import annotations

import pytest
import torch

from longseq.audio.separation.models import create_separator
from longseq.audio.separation.spectral import FrameAttention, FrameBlock

SPECTRAL = {"width": 16, "n_heads": 2, "window": 32}


@pytest.mark.parametrize("length", [1, 4, 30])
def test_a_block_of_frames_is_its_definition(length):
    torch.manual_seed(0)
    block = FrameBlock(8, n_heads=2, expand=3, kernel=5).double()
    x = torch.randn(2, length, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)  # it begins as nothing
    with torch.no_grad():
        block.attention.o_proj.weight.normal_()
        block.down.weight.normal_()
    inner = x + block.attention(block.norm1(x))[0]
    hidden = block.up(block.norm2(inner))
    near = torch.nn.functional.conv1d(hidden.mT, block.conv.conv.weight, padding=2, groups=24).mT
    wanted = inner + block.down(torch.nn.functional.silu(hidden + near))
    torch.testing.assert_close(block(x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", [1, 40, 1000, 1001])
def test_attention_in_training_is_that_of_evaluation(length):
    """In 16 bits, whose last one is 2^-8 of a value, and in the range of a thousand frames."""
    torch.manual_seed(0)
    layer = FrameAttention(8, 2).bfloat16()
    x = torch.randn(2, length, 8).bfloat16()
    trained = layer(x)[0]
    assert trained.requires_grad and trained.dtype == torch.bfloat16
    with torch.no_grad():
        evaluated = layer(x)[0].float()
    wanted = layer.float()(x.float())[0].detach()
    size = float(wanted.abs().max())
    torch.testing.assert_close(trained.detach().float(), wanted, rtol=0, atol=2**-5 * size)
    torch.testing.assert_close(trained.detach().float(), evaluated, rtol=0, atol=2**-5 * size)


@pytest.mark.parametrize("length", [1, 15, 16, 1001])
def test_a_mask_of_half_gives_half_of_the_recording(length):
    model = create_separator("spectral", **SPECTRAL).double()
    torch.nn.init.zeros_(model.after.weight)
    x = torch.randn(2, length, dtype=torch.float64)
    wanted = (x / 2).unsqueeze(1).expand(-1, 2, -1)
    torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)  # the window is float32


def test_a_spectral_separator_masks_the_complex_spectrum():
    torch.manual_seed(0)
    model = create_separator("spectral", **SPECTRAL).double()
    torch.nn.init.normal_(model.after.weight)
    x = torch.randn(1, 200, dtype=torch.float64)
    x = x / x.square().mean().sqrt()
    found = {}
    hook = model.after.register_forward_hook(lambda _, __, out: found.update(masks=out[0]))
    y = model(x)[0]
    hook.remove()
    frame = {"n_fft": 32, "hop_length": 8, "window": model.taper}
    spectrum = torch.stft(x[0], pad_mode="constant", return_complex=True, **frame)  # (17, L)
    masks = found["masks"].reshape(-1, 2, 2, 17)  # frame, part, voice, bin
    masked = torch.complex(masks[:, 0], masks[:, 1]).permute(1, 2, 0) * spectrum
    wanted = torch.istft(masked, length=200, **frame)
    total = wanted.sum(0)
    wanted = wanted * (total @ x[0]) / (total @ total)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
