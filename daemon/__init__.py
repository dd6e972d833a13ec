"""The imperative shell: the loop, the real doors (clock, disk, processes, sockets) and the command line."""
