"""Training of networks with filter groups, and measures of the trained networks."""
