"""Kernels of the fast engine, compiled by numba when first needed."""
