"""The U-shaped decoder on every kind of encoder, at sizes that divide by nothing."""

from __future__ import annotations

import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.models.registry import create_model
from longseq.vision.models.unet import create_segmenter

ENCODERS = {
    "unet": {"dims": [4, 8, 8]},
    "hybrid_unet": {"dims": [4, 8, 8], "depths": [1, 1, 1], "scans": [2]},
    "vmamba_pico": {"dims": [8, 16], "depths": [1, 1]},
    "vim_nano": {"depth": 2, "d_model": 16},
    "vit_pico": {"n_layers": 1, "d_model": 12},
}


@pytest.mark.parametrize("decoder", ["conv", "scan"])
@pytest.mark.parametrize("encoder", sorted(ENCODERS))
def test_every_pixel_has_logits_and_every_weight_a_gradient(encoder: str, decoder) -> None:
    torch.manual_seed(0)
    model = create_segmenter(encoder, 3, decoder, in_chans=2, **ENCODERS[encoder])
    y = model(torch.randn(2, 2, 21, 34))
    assert y.shape == (2, 3, 21, 34)
    (y**2).sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_rows_do_not_depend_on_their_neighbours() -> None:
    torch.manual_seed(0)
    model = create_segmenter("hybrid_unet", 2, **ENCODERS["hybrid_unet"]).eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-5)


def test_the_plain_encoder_classifies_too() -> None:
    model = create_model("unet", num_classes=4, dims=[4, 8])
    assert model(torch.randn(2, 3, 9, 11)).shape == (2, 4)
    with pytest.raises(ArgumentError, match="images must be"):
        model(torch.randn(2, 3, 1, 11))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'conv'"):
        create_segmenter("unet", 2, "convs")
    with pytest.raises(ConfigError, match="num_classes"):
        create_segmenter("unet", 1)
    with pytest.raises(ConfigError, match="dims"):
        create_model("unet", dims=[])
