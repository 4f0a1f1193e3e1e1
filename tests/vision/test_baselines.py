"""Logistic regression on pixels: learns what is linear, chooses its strength on validation data
alone."""

import numpy as np
import pytest

from longseq.core.errors import ConfigError
from longseq.vision.baselines import PixelRegression, pixels
from longseq.vision.compare import tie_width
from longseq.vision.data.module import ImageData


def test_it_learns_a_linear_rule_and_not_noise() -> None:
    generator = np.random.default_rng(0)
    x = generator.random((600, 20), dtype=np.float32)
    y = (x[:, 0] > x[:, 1]).astype(int)
    model = PixelRegression(strengths=(1e-3, 10.0)).fit(x[:300], y[:300], x[300:400], y[300:400])
    assert (model.predict(x[400:]) == y[400:]).mean() > 0.9
    assert model.strength == 10.0
    noise = generator.integers(0, 2, 600)
    blind = PixelRegression().fit(x[:300], noise[:300], x[300:400], noise[300:400])
    assert (blind.predict(x[400:]) == noise[400:]).mean() < 0.65


def test_the_test_images_do_not_move_it(make_zip) -> None:
    data = ImageData(str(make_zip(12)), img_size=12)
    x, y = pixels(data.parts["train"], 12)
    assert x.shape == (len(y), 3 * 12 * 12) and x.min() >= 0 and x.max() <= 1
    valid, test = (pixels(data.parts[part], 12) for part in ("valid", "test"))
    model = PixelRegression().fit(x, y, *valid)
    before = model.predict(test[0])
    assert (before == test[1]).mean() == 1.0
    one = model.predict(test[0][:1])
    assert one[0] == before[0]


def test_large_images_are_reduced_and_rows_limited(make_zip) -> None:
    part = ImageData(str(make_zip(6)), img_size=12).parts["train"]
    assert pixels(part, 5)[0].shape == (len(part), 75)
    x, y = pixels(part, 12, limit=4)
    assert len(x) == len(y) == 4


def test_without_validation_data_the_strength_is_the_middle_one() -> None:
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1])
    assert PixelRegression((1.0, 2.0, 3.0)).fit(x, y, x[:0], y[:0]).strength == 2.0
    with pytest.raises(ConfigError):
        PixelRegression(())


def test_no_error_among_few_images_is_not_certain() -> None:
    """Two errors of 40 against none are within chance (Fisher: 0.49), ten are not (0.001)."""
    assert 2 / 40 < tie_width(1.0, 40) < 10 / 40
    assert tie_width(1.0, 40) == pytest.approx(tie_width(0.0, 40))
    assert tie_width(0.8, 10_000) == pytest.approx(1.96 * (2 * 0.8 * 0.2 / 10_000) ** 0.5, rel=1e-3)
