"""Images: FITS tiles in, sharded Zarr cubes, windows and cutouts out."""
