"""Studies: their files, the keys of a study with their types, and the runs that a study plans."""
