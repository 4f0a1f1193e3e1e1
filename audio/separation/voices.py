"""Voices before and behind a separator: their level, their constant offset and their order."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from torch import Tensor

OFFSET = 0.05  # of the root mean square: below, pauses with the offset are still pauses


def centred(audio: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns samples without their constant offset, as of a sound card, and their root mean
    square; it is 0 where there is nothing but a constant.

    An offset that is too small to matter stays, so that digital silence stays silent.

    Args:
        audio: (N,); finite samples of any level are in range.
    """
    audio = audio.astype(np.float64)
    mean = float(audio.mean()) if len(audio) else 0.0
    power = float(np.sqrt(np.square(audio).mean())) if len(audio) else 0.0
    if abs(mean) > OFFSET * power:
        audio = audio - mean
        power = float(np.sqrt(np.square(audio).mean()))
        power = power if power > 1e-7 * abs(mean) else 0.0  # what rounding leaves of a constant
    return audio, power


def fitted(voices: Tensor, audio: Tensor) -> Tensor:
    """Returns voices scaled by the one factor that brings their sum nearest to the recording.

    The ratio that is trained for says nothing of the output's level and sign.

    Args:
        voices: (B, S, N).
        audio: the recording (B, N).
    """
    total = voices.sum(1)
    if total.dtype in (torch.bfloat16, torch.float16):
        total = total.float()
    power = total.square().mean(1, keepdim=True).clamp(min=1e-8)
    return voices * ((total * audio).mean(1, keepdim=True) / power).unsqueeze(-1)


def ordered(voices: Tensor, like: Tensor) -> Tensor:
    """Returns voices in the order in which they agree best with others.

    Args:
        voices: (B, S, N).
        like: the others (B, S, N).
    """
    matches = like @ voices.mT  # (B, S, S)
    orders = list(permutations(range(voices.shape[1])))
    own = list(range(voices.shape[1]))
    fits = torch.stack([matches[:, own, list(order)].sum(1) for order in orders], 1)
    best = torch.tensor(orders, device=voices.device)[fits.argmax(1)]
    return voices.gather(1, best.unsqueeze(-1).expand_as(voices))
