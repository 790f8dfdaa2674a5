"""One run of the gate and its results."""
