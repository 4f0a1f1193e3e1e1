"""Separation of voices that speak at the same time."""
