"""Tasks: what a network is asked for. `columns` needs no torch; the others do."""
