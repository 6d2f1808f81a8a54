"""A run shown on one page: curves, samples over time, and a line on what each number means."""
