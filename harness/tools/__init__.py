"""Programs that write documents or assets; nothing outside this package imports them."""
