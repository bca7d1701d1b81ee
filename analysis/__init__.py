"""Analysis of trained networks: pure functions over tensors, arrays and tidy tables."""
