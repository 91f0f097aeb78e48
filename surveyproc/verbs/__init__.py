"""The verbs as functions: configuration in, a result out. Nothing is printed."""

from surveyproc.verbs.core import (
    clean,
    diff,
    evaluate,
    ingest,
    plan,
    releases,
    rollback,
    run,
    train,
    validate,
)

__all__ = [
    "clean",
    "diff",
    "evaluate",
    "ingest",
    "plan",
    "releases",
    "rollback",
    "run",
    "train",
    "validate",
]
