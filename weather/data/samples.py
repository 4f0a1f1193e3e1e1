"""The samples that ship with the package; sources and licences stand in
``weather/samples/SOURCE.md``."""

from longseq.core.samples import Samples

SAMPLES = Samples(
    "weather",
    {
        "A1B_north_america": "A1B_north_america.nc",
        "E1_north_america": "E1_north_america.nc",
        "ssp_forcing": "ssp_forcing.csv",
    },
)
