"""Training: tables of fluxes and redshifts, and the loop that runs on Ray Train."""
