"""What is kept of a segment, and who sees it: one scheme a file."""
