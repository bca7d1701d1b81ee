"""Execution of all runs of a study: in this process, shared with other processes, or on the nodes of a Ray cluster."""
