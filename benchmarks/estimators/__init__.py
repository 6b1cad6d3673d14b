"""Accuracy and cost of estimators of (pointwise) mutual information."""
