"""From a trained run to tidy tables: a measure is a function from a context to values, notes and arrays.

``registry.MEASURES`` lists them, ``context.MeasureContext`` is their argument, and ``table`` gathers their results.
"""
