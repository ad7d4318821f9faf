"""The error for what a user can put right."""


class InputError(ValueError):
    """Something that was given is wrong; the message is one line with the name, the value, what was expected and the remedy."""
