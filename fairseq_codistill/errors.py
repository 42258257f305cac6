"""The error of the command-line tool: something that only the user can put right."""


class UserError(Exception):
    """One sentence that names the flag, the value and what to do."""
