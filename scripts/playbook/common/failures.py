"""What a job fails with. Only the standard library: setting up fails before anything is installed."""


class Failure(Exception):
    """The work could not be done: the cause and what to do, in words."""

    who = ""  # says so, where that is not the command that was given


def last_line(text: str, otherwise: str = "it said nothing") -> str:
    """Of what a program printed, which is where most say why they failed."""
    return (text.strip().splitlines() or [otherwise])[-1].strip()
