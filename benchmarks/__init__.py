"""Data, networks and experiments that measure :mod:`captum_nif`; run with -m."""
