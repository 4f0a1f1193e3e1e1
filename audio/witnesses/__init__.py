"""Witnesses of synthesis on full-bandwidth spectra: comb, sequence along frequency, texture."""
