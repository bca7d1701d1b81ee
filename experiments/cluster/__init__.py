"""Runs of a study, or points of a sweep, on the nodes of a Ray cluster."""
