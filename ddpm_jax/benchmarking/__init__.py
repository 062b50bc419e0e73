"""The cost of a config: predicted before a run, and measured."""
