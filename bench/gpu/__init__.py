"""Builds, checks and times this machine's GPU kernels: ``make test-gpu``, ``python -m
longseq.bench.gpu``."""
