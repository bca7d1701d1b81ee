"""Figures, one module each, drawn from saved tables, or from layers and networks themselves."""
