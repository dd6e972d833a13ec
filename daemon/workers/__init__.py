"""How a run is started, survives the daemon, and is reaped."""
