"""Survey images and catalogs in, science-ready value-added catalogs out."""

from importlib.metadata import version

__version__ = version("surveyproc")
