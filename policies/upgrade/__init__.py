"""What becomes of a git repository: risk, order, remotes, coordination, the gate, and its steps. Pure."""
