"""What the suites check of a case."""
