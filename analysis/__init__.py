"""What trained networks learned: pure functions over tensors, arrays and tidy tables."""
