"""The one exception that users see."""


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""
