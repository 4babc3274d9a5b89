"""What the command line says, as tests compare it."""


def unwrapped(output: str) -> str:
    """An error's text without the frame that it is folded into."""
    return "".join(output.replace("│", "").split())
