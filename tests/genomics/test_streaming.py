"""Reading on: exact where the state is bounded, in windows that see at least half of themselves."""

from __future__ import annotations

import pytest
import torch

from longseq.genomics.data.tokenizer import A, T
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.streaming import Stream, reach

HYENA = {"l_max": 16, "filter_order": 8}


def model(mixer: str, **kwargs: object) -> DNALanguageModel:
    torch.manual_seed(0)
    return DNALanguageModel(8, 2, mixer, kwargs).double().eval()


def tokens(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(A, T + 1, (rows, length), generator=torch.Generator().manual_seed(1))


def read(stream: Stream, ids: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([stream.read(part) for part in ids.split(sizes, 1)], 1)


def test_reach_is_known_of_every_kind() -> None:
    assert reach(model("mamba", d_state=4)) is None
    assert reach(model("long_conv", l_max=16)) is None  # its history is bounded, so it is carried
    assert reach(model("hyena", **HYENA)) == 16
    assert reach(model("attention", n_heads=2), trained=48) == 48


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [7, 1, 40, 52], [8, 92]])
@pytest.mark.parametrize("rows", [1, 2])
def test_cuts_leave_no_trace_in_windows(sizes: list[int], rows: int) -> None:
    hyena, ids = model("hyena", **HYENA), tokens(100, rows)
    whole = read(Stream(hyena, 16), ids, [100])
    torch.testing.assert_close(read(Stream(hyena, 16), ids, sizes), whole)


def test_windows_are_whole_windows() -> None:
    """Position t is read in the window that begins half a window before t's block."""
    hyena, ids = model("hyena", **HYENA), tokens(100)
    whole = read(Stream(hyena, 16), ids, [100])
    with torch.no_grad():
        for t in (0, 7, 8, 15, 16, 50, 99):
            low = max(0, t // 8 * 8 - 8)
            torch.testing.assert_close(whole[:, t], hyena(ids[:, low : t + 1])[0][:, -1])


@pytest.mark.parametrize("window", [1, 2, 3])
def test_smallest_windows(window: int) -> None:
    hyena, ids = model("hyena", **HYENA), tokens(9)
    whole = read(Stream(hyena, window), ids, [9])
    torch.testing.assert_close(read(Stream(hyena, window), ids, [2, 3, 4]), whole)
    assert torch.isfinite(whole).all()


def test_a_bounded_state_is_carried() -> None:
    conv, ids = model("long_conv", l_max=16), tokens(100)
    with torch.no_grad():
        whole = conv(ids)[0]
    torch.testing.assert_close(read(Stream(conv), ids, [30, 1, 69]), whole)
