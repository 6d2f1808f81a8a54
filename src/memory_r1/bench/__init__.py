"""Benchmarks: files of dialogues with questions, the metrics, and the summary of a run."""
