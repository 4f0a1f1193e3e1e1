"""Measurements that take longer than a test; each module is a command: ``python -m benchmarks.<name>``."""
