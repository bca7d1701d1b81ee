"""Measurements of speed; correctness is for the tests."""
