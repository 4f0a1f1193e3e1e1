"""Builds, checks and times this machine's GPU kernels: ``make test-gpu``, or ``python -m benchmarks.gpu``."""
