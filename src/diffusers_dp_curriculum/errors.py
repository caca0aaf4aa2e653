"""The one error that a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    Raised before any privacy is spent and before anything is overwritten. The message is one sentence that says what
    is wrong and what to do about it; command-line programs print it without a traceback.
    """
