"""Data sets and networks that the benchmarks share."""
