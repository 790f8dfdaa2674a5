"""Find the cause of a loss: blame, fine-tuning, error by layer, changed answers."""
