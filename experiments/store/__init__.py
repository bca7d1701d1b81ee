"""The run store: the files of each run, the leases of processes on runs, and safe writing and reading."""
