"""Command-line arguments that are no flags, and numbers given as text."""

from absl import app


def refuse_arguments(argv: list[str]) -> None:
    """Raises `app.UsageError` if the command line has more than flags."""
    if len(argv) > 1:
        raise app.UsageError(
            f"Expected only --flags. Received: {argv[1:]}. --helpfull lists them."
        )


def share_or_count(text: str) -> str | float:
    """Returns a budget as schemes take it: a share as text, a count as a number."""
    try:
        count = float(text)
    except ValueError:
        return text
    return count if count > 1 else text
