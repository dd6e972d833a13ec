"""The demonstration: three real jobs, and a stage on which a daemon of their own runs them."""
