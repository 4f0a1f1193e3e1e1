"""Forecasts of fields with lead time, on flows that are generated."""
