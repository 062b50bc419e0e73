"""What a config costs: predicted before a run, and measured in one."""
