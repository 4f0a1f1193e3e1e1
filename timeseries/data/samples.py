"""The series that ship with the package; their source is in ``timeseries/samples/SOURCE.md``."""

from longseq.core.samples import Samples

# Half-hourly demand in England and Wales, 12 weeks of 2000: wide CSV, columns ds and demand_MW.
SAMPLES = Samples("timeseries", {"electricity_demand": "electricity_demand.csv"})
