"""Whether Hugging Face gives what a job would begin with: asked before the job, with the token that it would use."""

import os

import requests

SECONDS = 5
TOKENS = "https://huggingface.co/settings/tokens"


def access(name: str) -> tuple[bool | None, str, str]:
    """Ask for the config of a repository, "meta-llama/Llama-3.2-1B". `HF_ENDPOINT` and `HF_TOKEN` are heeded.

    Returns whether it is given, None where nobody answers; what was found; what to do.
    """
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{name}"
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        asked = f"{page}/resolve/main/config.json"
        answer = requests.head(asked, headers=headers, timeout=SECONDS, allow_redirects=True)
    except requests.RequestException as error:
        why = type(error).__name__
        return None, f"{name} could not be asked for ({why}); without a network give a local folder", ""
    if answer.ok:
        return True, f"{name} is given{' with HF_TOKEN' if token else ''}", ""
    if answer.status_code in (401, 403):
        given = "with this HF_TOKEN" if token else "without HF_TOKEN"
        remedy = f"accept the licence at {page} and set HF_TOKEN to a token of that account ({TOKENS})"
        return False, f"{name} is gated or private, and not given {given}", remedy
    return False, f"{name}: Hugging Face answers {answer.status_code}", "check the name; a local folder works too"
