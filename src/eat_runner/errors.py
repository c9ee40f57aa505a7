"""The one exception that a person's mistake raises, exit codes, and how texts of unknown origin are shown."""

# of the commands, beside 0: a run failed; bad input, nothing was started; stopped, the same command continues
RUN_FAILED, BAD_INPUT, CONTINUE_ME = 1, 2, 75

LONGEST_NAME = 200


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what would be right; the command line prints
    it and exits with code 2. Everything else that is raised is a defect or a failed run."""


def one_line(text: str) -> str:
    """``text`` without line breaks, and with ``?`` for what a terminal could take for a command."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def printable(text: str, longest: int | None = LONGEST_NAME) -> str:
    """``text`` in one line that no terminal, table or image takes for a command; cut where it is longer than that."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if longest is None or len(clean) <= longest else f"{clean[:longest]}…"
