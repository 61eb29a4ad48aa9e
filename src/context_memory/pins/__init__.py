"""Which raw tokens stay verbatim beside the memory: one rule a file."""
