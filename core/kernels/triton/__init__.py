"""Triton kernels of the chunked operators; every module here imports triton, so import them where
used."""
