"""A run: plan the units, compute them, record each one."""
