"""Figures, one module each, drawn from saved tables only."""
