"""What ``longseq.plugins`` names: importing it registers the mixer and makes the classes known by
name."""

from longseq_leaky.forecaster import LevelForecaster
from longseq_leaky.metric import Bias
from longseq_leaky.mixer import LeakyAverage

__all__ = ["Bias", "LeakyAverage", "LevelForecaster"]
