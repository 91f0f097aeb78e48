"""Releases: gates, publishing, rolling back, differences, drift, what nothing refers to."""
