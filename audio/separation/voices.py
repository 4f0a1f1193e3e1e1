"""What the voices of a separator leave open: their level and their order."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor


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
