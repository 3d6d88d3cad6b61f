"""Fast evaluation of all members of an ensemble together."""
