"""Pictures: one clip in all its versions as spectrograms, and the scores of all clips by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from longseq.audio.compare import Scored
from longseq.audio.features import MelPower, normalise
from longseq.core.figures import new_figure, save_png


def plot_versions(
    clips: Mapping[str, np.ndarray],
    notes: Sequence[str],
    scored: Scored,
    path: str | Path,
    seconds: float = 6.0,
) -> None:
    """Draws the versions of one clip as log-mel spectrograms, above all windows' scores by method.

    Args:
        clips: a version's name → mono samples at 16 kHz, float32 (N,).
        notes: a line for every version, for its title.
        scored: windows.
        path: PNG file.
        seconds: of the clips that are drawn.
    """
    mel = MelPower()
    figure = new_figure(3.2 * len(clips), 7.2)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    above.suptitle("The same music, real and resynthesised (mel bands to 8 kHz over seconds)")
    for axes, (name, audio), note in zip(
        above.subplots(1, len(clips), sharey=True), clips.items(), notes
    ):
        piece = torch.from_numpy(audio[: round(seconds * mel.sample_rate)])[None]
        level = normalise(mel(piece).transpose(1, 2))[0].T.numpy()
        length = level.shape[1] * mel.hop / mel.sample_rate
        axes.imshow(
            level, origin="lower", aspect="auto", cmap="magma", extent=(0, length, 0, mel.n_mels)
        )
        axes.set_title(f"{name}\n{note}", fontsize=10)
        axes.set_xlabel("s")
    below.suptitle("Scores of all windows (standardised log-odds; higher: synthetic)")
    kinds = ["", *sorted(set(scored.methods) - {""})]
    rng = np.random.default_rng(0)
    panels = below.subplots(1, len(scored.scores), sharey=True, squeeze=False)[0]
    for axes, (model, values) in zip(panels, scored.scores.items()):
        spread = float(values.std()) or 1.0
        for place, kind in enumerate(kinds):
            mine = (values[scored.methods == kind] - values.mean()) / spread
            colour = "tab:green" if kind == "" else "tab:red"
            axes.plot(
                place + rng.uniform(-0.18, 0.18, len(mine)),
                mine,
                ".",
                color=colour,
                alpha=0.6,
                markersize=6,
            )
            axes.plot(
                [place - 0.3, place + 0.3], [np.median(mine)] * 2, color="black", linewidth=1.5
            )
        axes.set_xticks(range(len(kinds)), [kind or "real" for kind in kinds])
        axes.set_title(model, fontsize=11)
        axes.grid(axis="y", alpha=0.3)
    save_png(figure, path)
