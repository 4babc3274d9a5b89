"""What can go wrong with the embedded cluster, in words that say what to do next."""


class LocalError(Exception):
    """The command cannot go on. The message tells the user why, and what to do."""
