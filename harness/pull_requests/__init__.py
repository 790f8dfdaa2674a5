"""What a git diff changes: which recipes it reaches, and with what effect."""
