"""The one exception that a person's mistake raises."""


class UserError(ValueError):
    """Bad input. The message is one line that says what is wrong and what would be right; the command line prints
    it and exits with code 2. Everything else that is raised is a defect or a failed run."""
