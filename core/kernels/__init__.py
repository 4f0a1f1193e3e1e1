"""Kernels of the operators: C++ for CPUs, CUDA C++ compiled at first use, and Triton."""
