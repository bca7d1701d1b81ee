"""Measures on a network that was trained elsewhere: its weights, any folder of images, the `measure` command."""
