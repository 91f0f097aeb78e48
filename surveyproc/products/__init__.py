"""Products: what a run can compute for every object."""
