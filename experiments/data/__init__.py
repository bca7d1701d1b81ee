"""Datasets: decoded once into a cache, then cut and augmented batch by batch.

``load`` returns a ``Dataset``: training and test ``Images``. ``sources.SOURCES`` lists what can be loaded.
"""

from experiments.data.datasets import Dataset, Images, load

__all__ = ["Dataset", "Images", "load"]
