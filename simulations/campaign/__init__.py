"""The campaign: ledgers of all shapes, damaged in every place and in every way, and what must be true of each."""
