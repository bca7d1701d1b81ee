"""Groups on several devices: the part of a network that each rank computes, and the study that measures it."""
