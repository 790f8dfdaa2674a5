"""Data: samples, pictures and prompts, tasks with their outcomes, calibration pairs."""
