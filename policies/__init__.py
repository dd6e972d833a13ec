"""Every decision Hermes makes, as pure functions of values that are recorded."""
