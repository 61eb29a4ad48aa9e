"""Examples and their scoring: one dataset a file."""
