"""AR-Net and the companion mixer: autoregressions that are found, and continued exactly."""

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.mixers.companion import Companion
from longseq.timeseries.ar_net import (
    continue_series,
    least_squares,
    sparse_weights,
    weight_error,
)
from longseq.timeseries.local import BASELINES


def sparse_series(rows: int, seed: int = 0) -> np.ndarray:
    """The paper's AR(3) with weights 0.2, 0.3, -0.5."""
    rng = np.random.default_rng(seed)
    x, noise = np.zeros(rows), rng.normal(size=rows)
    for t in range(3, rows):
        x[t] = 0.2 * x[t - 1] + 0.3 * x[t - 2] - 0.5 * x[t - 3] + noise[t]
    return x


def test_sparse_weights_are_nearer_than_least_squares_at_order_100() -> None:
    x, true = sparse_series(5000), np.r_[0.2, 0.3, -0.5, np.zeros(97)]
    plain = weight_error(least_squares(x, 100), true)
    sparse = weight_error(sparse_weights(x, 100, steps=800), true)
    assert sparse < plain / 4
    np.testing.assert_array_equal(sparse_weights(x, 5, sparsity=0), least_squares(x, 5))


def test_weights_are_continued_by_hand() -> None:
    x = sparse_series(60)
    found = continue_series(x, np.array([0.2, 0.3, -0.5]), 2)
    first = 0.2 * x[-1] + 0.3 * x[-2] - 0.5 * x[-3]
    np.testing.assert_allclose(found, [first, 0.2 * first + 0.3 * x[-1] - 0.5 * x[-2]])
    assert weight_error(np.array([1.0, 0]), np.array([0.0, 1])) == 100


@pytest.mark.parametrize("order", [1, 3, 12])
def test_a_companion_mixer_set_to_the_weights_forecasts_the_autoregression(order: int) -> None:
    rng = np.random.default_rng(order)
    weights = 0.9 * rng.dirichlet(np.ones(order)) * rng.choice([-1, 1], order)
    x = rng.normal(size=(2, 40))
    mixer = Companion(1, order, norm_order=0, skip_connection=False, closed_loop=True).double()
    with torch.no_grad():
        # The state is the last values: a shift, with what comes in at its first place.
        mixer.a.zero_()
        mixer.b.zero_()
        mixer.b[:, 0] = 1
        mixer.k.copy_(torch.from_numpy(weights)[None])
        mixer.c.copy_(mixer.k)
        _, state = mixer(torch.from_numpy(x)[..., None])
        found, _ = mixer.rollout(state, 30)
    expected = np.stack([continue_series(one, weights, 30) for one in x])
    np.testing.assert_allclose(found[..., 0].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 4, 9, 60])
def test_a_local_model_takes_any_length(length: int) -> None:
    model = BASELINES["ar_net"](5, 12)
    np.testing.assert_allclose(model.paths(np.full((2, length), 4.0)), 4.0)
    x = 3 + sparse_series(length)[None]
    assert np.isfinite(model.paths(x)).all()


def test_too_short_a_series_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 20 are needed"):
        least_squares(np.zeros(20), 10)
