"""`python -m daemon.cli` is `hermesd`."""

from daemon.cli import main

main()
