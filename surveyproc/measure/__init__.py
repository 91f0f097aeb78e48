"""Measurements on cutouts: kernels and the products around them."""
