"""Frames, split protocols, windows and the data module of time series."""
