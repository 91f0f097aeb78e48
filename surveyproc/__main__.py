"""`python -m surveyproc` is the command `surveyproc`."""

from surveyproc.cli import main

main()
