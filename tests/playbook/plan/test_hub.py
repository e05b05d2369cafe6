"""Access to Hugging Face, against a server that answers as it does for open, gated and missing repositories."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from playbook.plan import hub

TOKEN = "hf_of-an-account-that-accepted"


class Answers(BaseHTTPRequestHandler):
    """200 for an open repository, 401 for a gated one but with the token, 404 for the rest."""

    def do_HEAD(self) -> None:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        status = {"/open/llama": 200, "/gated/llama": 200 if allowed else 401}
        self.send_response(status.get(self.path.removesuffix("/resolve/main/config.json"), 404))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server in Hugging Face's place."""
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield address
    server.shutdown()
    server.server_close()


def test_an_open_repository_is_given(endpoint: str) -> None:
    assert hub.access("open/llama") == (True, "open/llama is given", "")


def test_a_gated_one_says_where_its_licence_is(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ok, found, remedy = hub.access("gated/llama")
    assert ok is False and "not given without HF_TOKEN" in found
    assert f"{endpoint}/gated/llama" in remedy and "HF_TOKEN" in remedy
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "not given with this HF_TOKEN" in hub.access("gated/llama")[1]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = hub.access("gated/llama")
    assert found[0] is True and TOKEN not in str(found)


def test_a_missing_one_and_no_network(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.access("no/such")[:2] == (False, "no/such: Hugging Face answers 404")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ok, found, _ = hub.access("open/llama")
    assert ok is None and "give a local folder" in found
