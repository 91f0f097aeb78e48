"""One module a table format, each with one `TableReader`."""
