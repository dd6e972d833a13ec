"""The verbs of `hermesd` that look at what has not happened: `simulate`, `whatif`, `bisect`."""
