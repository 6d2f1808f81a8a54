"""The loop around an algorithm: checks on val, states that survive a kill, and the journal of metrics."""
