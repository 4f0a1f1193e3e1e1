"""Forecasters as plain torch modules."""
