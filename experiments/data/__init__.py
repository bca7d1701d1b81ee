"""Datasets: decoded once into a cache, then cut and augmented batch by batch."""
