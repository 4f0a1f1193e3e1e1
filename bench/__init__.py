"""Measurements beside peers: ``longseq bench …``, ``python -m longseq.bench.gpu`` and other long
ones."""
