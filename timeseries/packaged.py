"""The packaged zero-shot forecaster's network, and means of networks that were packaged before."""

from __future__ import annotations

from pathlib import Path

from longseq.core.checkpoints.safe import load_weights
from longseq.core.errors import ConfigError, did_you_mean
from longseq.timeseries.models.zero_shot import MeanOfNetworks, ZeroShot

# Weights in half precision; the card beside them says how they were made.
PACKAGED = Path(__file__).parent / "checkpoints" / "zero_shot.safetensors"
READS = 64
# Of earlier versions, for their checkpoints: shares of networks in the mean, where the season found
# has at most four rows and where it has more, and what recurrent layers read.
_SHARES: dict[str, tuple[tuple[float, float], ...]] = {
    "plain+slstm": ((1 / 4, 1 / 3), (3 / 4, 2 / 3)),
    "plain+local": ((1 / 4, 1 / 2), (3 / 4, 1 / 2)),
    "recurrent+plain": ((2 / 3, 1 / 3), (1 / 3, 2 / 3)),
    "recurrent+plain+local": ((1 / 3, 1 / 4), (0.0, 1 / 2), (2 / 3, 1 / 4)),
}
_READS = {"plain+slstm": 64, "recurrent+plain": 512, "recurrent+plain+local": 256}
EARLIER = tuple(_SHARES)


def packaged_network() -> ZeroShot:
    """Returns the packaged forecaster's network: two sLSTM layers, and local models."""
    network = ZeroShot(n_layers=2, reads=READS, local=True)
    load_weights(PACKAGED, network)
    return network


def mean_of_networks(names: str, recurrent: ZeroShot | None = None) -> MeanOfNetworks:
    """Returns networks of an earlier version and their mean, untrained.

    Args:
        names: one of ``EARLIER``.
        recurrent: the network with recurrent layers, of those.

    Raises:
        ConfigError: for another name.
    """
    if names not in EARLIER:
        raise ConfigError(f"no packaged networks {names!r}; {did_you_mean(names, EARLIER)}")
    networks = []
    for name in names.split("+"):
        if name == "recurrent":
            one = ZeroShot() if recurrent is None else recurrent
            one.reads = _READS[names]
        elif name == "slstm":
            one = ZeroShot(n_layers=1, reads=_READS[names], local=True)
        else:
            one = ZeroShot(n_layers=0, local=name == "local")
        networks.append(one)
    return MeanOfNetworks(networks, _SHARES[names])
