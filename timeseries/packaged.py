"""The packaged zero-shot forecaster's networks: their files, and their shares in its mean."""

from __future__ import annotations

from pathlib import Path

from longseq.core.checkpoints.safe import load_weights
from longseq.core.errors import ConfigError, did_you_mean
from longseq.timeseries.models.zero_shot import MeanOfNetworks, ZeroShot

BOTH = "plain+slstm"
# Weights in half precision: of a network without a backbone, and of one with an sLSTM layer that
# sees local models too.
PACKAGED = {
    name: Path(__file__).parent / "checkpoints" / f"zero_shot_{name}.safetensors"
    for name in BOTH.split("+")
}
# Shares of networks in the mean, where the season found has at most four rows and where it has
# more. The card says what chose them. The others are of earlier versions, whose checkpoints
# forecast as they did. Recurrent layers read so many values.
_SHARES: dict[str, tuple[tuple[float, float], ...]] = {
    BOTH: ((1 / 4, 1 / 3), (3 / 4, 2 / 3)),
    "plain+local": ((1 / 4, 1 / 2), (3 / 4, 1 / 2)),
    "recurrent+plain": ((2 / 3, 1 / 3), (1 / 3, 2 / 3)),
    "recurrent+plain+local": ((1 / 3, 1 / 4), (0.0, 1 / 2), (2 / 3, 1 / 4)),
}
_READS = {BOTH: 64, "recurrent+plain": 512, "recurrent+plain+local": 256}
EARLIER = tuple(name for name in _SHARES if name != BOTH)


def mean_of_networks(names: str, recurrent: ZeroShot | None = None) -> MeanOfNetworks:
    """Returns networks and their mean, untrained.

    Args:
        names: "plain+slstm", or one of ``EARLIER``.
        recurrent: the network with recurrent layers, of those.
    """
    networks = []
    for name in names.split("+"):
        if name == "recurrent":
            first = ZeroShot() if recurrent is None else recurrent
            first.reads = _READS[names]
            networks.append(first)
        else:
            networks.append(_network(name))
    return MeanOfNetworks(networks, _SHARES[names])


def packaged_networks(names: str = BOTH) -> ZeroShot | MeanOfNetworks:
    """Returns the packaged forecaster, the weighted mean of its networks, or one of them.

    Args:
        names: "plain+slstm", "plain" or "slstm".

    Raises:
        ConfigError: for another name.
    """
    known = (BOTH, *PACKAGED)
    if names not in known:
        raise ConfigError(f"no packaged networks {names!r}; {did_you_mean(names, known)}")
    if names != BOTH:
        single = _network(names)
        load_weights(PACKAGED[names], single)
        return single
    mean = mean_of_networks(BOTH)
    for path, network in zip(PACKAGED.values(), mean.networks):
        load_weights(path, network)
    return mean


def _network(name: str) -> ZeroShot:
    if name == "slstm":
        return ZeroShot(n_layers=1, reads=_READS[BOTH], local=True)
    return ZeroShot(n_layers=0, local=name == "local")
