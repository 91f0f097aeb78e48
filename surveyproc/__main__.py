"""`python -m surveyproc` is the command `surveyproc`."""

from surveyproc.interrupt import watched


def main() -> None:
    """The command; Ctrl-C is looked after before anything else is imported."""
    with watched():
        from surveyproc.cli.app import main as command

        command()


if __name__ == "__main__":
    main()
