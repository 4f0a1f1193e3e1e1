"""Models of DNA sequences."""
