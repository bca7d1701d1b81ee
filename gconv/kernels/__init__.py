"""The ways of computing a grouped convolution, one file each, and the choice between them."""
