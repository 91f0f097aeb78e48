"""Survey images and catalogs in, science-ready value-added catalogs out."""

__version__: str


def __getattr__(name: str) -> str:
    # What finds the version takes longer to import than the rest of a short command's beginning.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("surveyproc")
