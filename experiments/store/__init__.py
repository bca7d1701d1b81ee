"""The run store: what is kept of runs, by whom a run is held, and how nothing of it is lost."""
