"""The git door: repositories are probed, fetched into and moved here, in worker processes and never in the daemon's."""
