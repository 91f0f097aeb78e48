"""Source catalogs: read any format in batches, write HATS, find rows on the sky."""
