"""What Hugging Face says when it does not give something, in words that say what to do."""

from __future__ import annotations

import contextlib
import os
import socket
import textwrap
from collections.abc import Iterator
from urllib.parse import urlsplit

from pretraining.errors import FULL_DISK, UsageError

LONGEST = 240  # characters of what they say


@contextlib.contextmanager
def explained(name: str, flag: str) -> Iterator[None]:
    """Within: an error of Hugging Face's libraries on what a flag names becomes a UsageError of one sentence."""
    _go_offline_without_network()
    from huggingface_hub import errors

    try:
        yield
    except (OSError, ValueError) as error:
        chain = _chain(error)
        if any(isinstance(each, OSError) and each.errno in FULL_DISK for each in chain):
            raise  # it is not Hugging Face that failed
        said = f" cannot be had from Hugging Face ({_first_line(error)}); without a network give a local folder"
        if any(isinstance(each, errors.GatedRepoError) for each in chain):
            said = (
                f" is gated: accept its licence at https://huggingface.co/{name} and set HF_TOKEN to a token of that "
                "account (https://huggingface.co/settings/tokens)"
            )
        elif os.path.isdir(name):
            said = f": {_first_line(error)}"
        elif any(isinstance(each, errors.RepositoryNotFoundError | errors.HFValidationError) for each in chain):
            said = ": neither a local folder nor a repository of Hugging Face that you can see"
            said += "; a private one needs HF_TOKEN"
        raise UsageError(f"{flag} {name}{said}") from error


def _go_offline_without_network() -> None:
    """Where the name does not even resolve, look only at what is there: a minute of retries would end no better."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        if not any(name.lower() == "https_proxy" for name in os.environ):
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _first_line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return textwrap.shorten(first, LONGEST, placeholder=" ...")  # some list every model that transformers knows
