"""The sections of the report: what each reads, gathers and shows."""
