"""The one exception that a person's mistake raises, and how texts of unknown origin are shown."""


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what would be right; the command line prints
    it and exits with code 2. Everything else that is raised is a defect or a failed run."""


def one_line(text: str) -> str:
    """``text`` without line breaks, and with ``?`` for what a terminal could take for a command."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
