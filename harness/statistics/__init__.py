"""Statistics: paired and sequential tests, budgets, verdicts, measures of distributions."""
