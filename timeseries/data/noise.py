"""Random parts of generated series: noise of several kinds, and linear recursions."""

from __future__ import annotations

from typing import Any

import numpy as np

Rng = np.random.Generator


def log_uniform(rng: Rng, low: float, high: float, size: Any = None) -> Any:
    """Returns numbers whose logarithm is uniform."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def innovations(rng: Rng, n: int, length: int) -> np.ndarray:
    """Returns unit noise (n, T): normal, heavy-tailed, or with calm and storm."""
    kind = rng.random(n)
    e = rng.standard_normal((n, length))
    df = rng.uniform(2.5, 8, (n, 1))
    tail = rng.standard_normal((n, length)) / np.sqrt(rng.gamma(df / 2, 2 / df, (n, length)))
    tail = tail / np.sqrt(df / (df - 2))
    e = np.where((kind < 0.3)[:, None], tail, e)
    log_vol = brown(rng, n, length) * 0.02 * rng.uniform(0, 3, (n, 1))
    return np.where((kind > 0.85)[:, None], e * np.exp(np.clip(log_vol, -3, 3)), e)


def brown(rng: Rng, n: int, length: int) -> np.ndarray:
    """Returns random walks of unit steps (n, T)."""
    return np.cumsum(rng.standard_normal((n, length)), 1)


def ar_noise(rng: Rng, n: int, length: int) -> np.ndarray:
    """Returns noise of unit variance with a first-order autocorrelation, often none (n, T)."""
    phi = np.where(rng.random(n) < 0.5, 0.0, rng.uniform(-0.5, 0.98, n))
    return recursive(innovations(rng, n, length) * np.sqrt(1 - phi**2)[:, None], phi[:, None])


def recursive(e: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Returns x_t = Σ_k phi_k x_{t-k} + e_t for phi (n, K)."""
    x, weights = e.T.copy(), phi.T.copy()  # rows of one time lie together
    for t in range(1, len(x)):
        for k in range(min(len(weights), t)):
            x[t] += weights[k] * x[t - k - 1]
    return np.ascontiguousarray(x.T)


def unit(x: np.ndarray) -> np.ndarray:
    """Returns series (n, T) of mean 0 and variance 1."""
    x = x - x.mean(1, keepdims=True)
    return x / np.maximum(x.std(1, keepdims=True), 1e-6)
