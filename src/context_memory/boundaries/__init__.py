"""Where a segment ends: one policy a file."""
