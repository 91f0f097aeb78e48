"""Metrics of what we predict: numpy only."""
