"""Benchmarks of speed and of the rates of wrong verdicts; correctness is for the tests."""
