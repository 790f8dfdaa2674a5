"""The gate's suites; an installed gate has them as the package ``harness.suites``."""
