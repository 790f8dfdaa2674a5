"""The pytest side: options, fixtures, outcomes, workers, benchmark storage."""
