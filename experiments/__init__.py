"""Trains networks with filter groups and measures what comes of it."""
