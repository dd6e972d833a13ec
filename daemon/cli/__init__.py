"""The command line, `hermesd`."""
