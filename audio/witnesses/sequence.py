"""A sequence model along the frequency axis: the averaged spectrum's 8,193 bins as a sequence.

``longseq.audio.witnesses.model`` trains it; here it is read and run with NumPy alone, because torch
costs a scan more memory than all the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from longseq.audio.witnesses.comb import comb_scores, spacings
from longseq.audio.witnesses.spectrum import BIN, BINS, bandwidth, line_scores, surprise
from longseq.core.arrays import check_arrays
from longseq.core.checks import check_positive

CHANNELS = 3
STRIDES = (2, 4, 4)  # of the convolutions over bins
TOKENS = math.ceil(BINS / math.prod(STRIDES))
_STATE, _TAPS = 16, 4  # of a Mamba
_EPS = 1e-5
Arrays = Mapping[str, np.ndarray]
_HIGH = 20000.0


def sequence_features(level: np.ndarray) -> np.ndarray:
    """Returns what the model sees of every bin, float32 (3, 8193).

    Its height above the neighbourhood, its surprise, and the score of the clearest comb that the
    bin is a tooth of; zeros above the recording's bandwidth.

    Args:
        level: dB (8193,), of ``fine_spectrum``.
    """
    z = line_scores(level)
    u = surprise(z)
    grid = spacings()
    top = bandwidth(level)
    scores = comb_scores(u, grid, min(top, _HIGH))
    support = np.zeros(BINS, np.float32)
    for spacing, score in zip(grid, scores):
        teeth = np.arange(1, int((BINS - 1) * BIN / spacing) + 1) * spacing / BIN
        place = np.rint(teeth).astype(int)
        support[place] = np.maximum(support[place], score)
    features = np.stack((z / 5, u / 4, support / 5)).astype(np.float32)
    features[:, round(top / BIN) :] = 0.0
    return features


def frequency_shapes(
    d_model: int = 32, n_layers: int = 2, channels: int = 16
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights of ``FrequencyModel`` with its own mixer, by name.

    Args:
        d_model: width.
        n_layers: of the backbone.
        channels: of the first convolution.

    Raises:
        ConfigError: for sizes that are not positive.
    """
    d, c = check_positive("d_model", d_model), check_positive("channels", channels)
    inner, rank = 2 * d, math.ceil(d / 16)
    shapes: dict[str, tuple[int, ...]] = {"position": (TOKENS, d)}
    for number, (width, source, taps) in enumerate(
        ((c, CHANNELS, 7), (2 * c, c, 5), (d, 2 * c, 5))
    ):
        shapes[f"stem.{2 * number}.weight"] = (width, source, taps)
        shapes[f"stem.{2 * number}.bias"] = (width,)
    for layer in range(check_positive("n_layers", n_layers)):
        shapes[f"backbone.layers.{layer}.norm1.weight"] = (d,)
        for way in ("fwd", "rev"):
            own = f"backbone.layers.{layer}.mixer.{way}"
            shapes |= {
                f"{own}.A_log": (inner, _STATE),
                f"{own}.D": (inner,),
                f"{own}.in_proj.weight": (2 * inner, d),
                f"{own}.conv1d.weight": (inner, 1, _TAPS),
                f"{own}.conv1d.bias": (inner,),
                f"{own}.x_proj.weight": (rank + 2 * _STATE, inner),
                f"{own}.dt_proj.weight": (inner, rank),
                f"{own}.dt_proj.bias": (inner,),
                f"{own}.out_proj.weight": (d, inner),
            }
    return shapes | {"backbone.norm_f.weight": (d,), "head.weight": (1, 2 * d), "head.bias": (1,)}


def frequency_model(hyper: Mapping[str, Any], weights: Arrays) -> Callable[[np.ndarray], float]:
    """Returns what maps features (3, 8193) to log-odds.

    Args:
        hyper: hyper-parameters of ``FrequencyModel``.
        weights: of it.

    Raises:
        DataError: if the weights are not those of these hyper-parameters.
    """
    if set(hyper) <= {"d_model", "n_layers", "channels"}:
        check_arrays(frequency_shapes(**hyper), weights, "FrequencyModel")
        kept = {name: value.astype(np.float32) for name, value in weights.items()}
        return partial(_frequency_logit, kept)
    from longseq.audio.witnesses.model import run_trained

    return run_trained(hyper, weights)


def _frequency_logit(weights: Arrays, features: np.ndarray) -> float:
    """The forward pass of ``FrequencyModel``, float32."""
    x = features
    for number, stride in enumerate(STRIDES):
        x = x if not number else _gelu(x)
        x = _convolved(x, weights[f"stem.{2 * number}.weight"], stride)
        x += weights[f"stem.{2 * number}.bias"][:, None]
    x = x.T + weights["position"]
    layer = 0
    while f"backbone.layers.{layer}.norm1.weight" in weights:
        own = f"backbone.layers.{layer}."
        y = _rms(x, weights[f"{own}norm1.weight"])
        x = x + _mamba(y, weights, f"{own}mixer.fwd.")
        x = x + _mamba(y[::-1], weights, f"{own}mixer.rev.")[::-1]
        layer += 1
    x = _rms(x, weights["backbone.norm_f.weight"])
    pooled = np.concatenate((x.mean(0), x.max(0)))
    return float(weights["head.weight"][0] @ pooled + weights["head.bias"][0])


def _gelu(x: np.ndarray) -> np.ndarray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def _convolved(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Maps (C, L) to (out, ⌈L / stride⌉), padded with zeros so that windows are centred."""
    late = weight.shape[2] // 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (late, late))), weight.shape[2], 1
    )[:, ::stride]
    return np.tensordot(weight, windows, ((1, 2), (0, 2)))


def _rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(_EPS)) * weight


def _silu(x: np.ndarray) -> np.ndarray:
    return x * (np.float32(0.5) + np.float32(0.5) * np.tanh(x / 2))


def _mamba(x: np.ndarray, weights: Arrays, own: str) -> np.ndarray:
    """``core.mixers.mamba.Mamba`` on (L, D): see there."""
    u, z = np.split(x @ weights[f"{own}in_proj.weight"].T, 2, axis=1)
    taps = weights[f"{own}conv1d.weight"][:, 0]
    padded = np.pad(u, ((_TAPS - 1, 0), (0, 0)))
    u = sum((padded[i : i + len(u)] * taps[:, i] for i in range(_TAPS)), np.float32(0))
    u = _silu(u + weights[f"{own}conv1d.bias"])
    rank = weights[f"{own}dt_proj.weight"].shape[1]
    low, b, c = np.split(u @ weights[f"{own}x_proj.weight"].T, (rank, rank + _STATE), axis=1)
    delta = low @ weights[f"{own}dt_proj.weight"].T + weights[f"{own}dt_proj.bias"]
    delta = np.logaddexp(delta, np.float32(0))
    decay = np.exp(delta[:, :, None] * -np.exp(weights[f"{own}A_log"]))
    states = (delta * u)[:, :, None] * b[:, None]
    for t in range(1, len(states)):
        states[t] += decay[t] * states[t - 1]
    y = (states @ c[:, :, None])[:, :, 0] + weights[f"{own}D"] * u
    return (y * _silu(z)) @ weights[f"{own}out_proj.weight"].T
