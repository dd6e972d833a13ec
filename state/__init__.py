"""What the events add up to: a graph, moved by patches, and the views people read."""
