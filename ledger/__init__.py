"""What happened, in order: one hash-chained JSON object per line. The only historical truth."""
