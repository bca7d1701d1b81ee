"""The version of the measured values. A finished run whose values have another version is measured again."""

VERSION = 7  # raise it when a change of the code changes a measured value, or adds a measure
