"""Fetching a config.json from a Hub that runs on this machine: what it asks, what it believes, what it never says."""

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from estimators.errors import BadInput
from estimators.models import load_config, load_model
from runners import hub
from runners.hub import fetch_config

LLAMA = json.dumps(dict(load_config("llama-2-7b").fields)).encode()
TOKEN = "hf_secretsecretsecret"


class Hub:
    """A server that records what it was asked, and answers as the test says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: reply(handler, 200, LLAMA)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers.get("Authorization")))
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", location: str | None = None) -> None:
    handler.send_response(status)
    if location:
        handler.send_header("Location", location)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def hubs(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Hub]]:
    """The Hub that HF_ENDPOINT names, and a stranger."""
    ours, stranger = Hub(), Hub()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", ours.address + "/")
    yield ours, stranger
    ours.close()
    stranger.close()


@pytest.fixture
def server(hubs: tuple[Hub, Hub]) -> Hub:
    return hubs[0]


def refusal(hub_id: str = "someone/model", offline: bool = False) -> str:
    with pytest.raises(BadInput) as caught:
        fetch_config(hub_id, offline)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_a_model_that_only_the_hub_has_loads(server: Hub) -> None:
    model = load_model("someone/Some-Model_1.5", fetch_config)
    assert model.parameters == load_model("llama-2-7b").parameters
    assert server.asked == [("/someone/Some-Model_1.5/resolve/main/config.json", None)]


def test_offline_asks_nothing(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "offline" in refusal(offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline" in refusal()
    assert server.asked == []


def test_the_token_goes_to_the_hub_and_follows_no_redirect_elsewhere(
    hubs: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, stranger = hubs
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    ours.answer = lambda handler: (
        reply(handler, 200, LLAMA) if handler.path == "/cached" else reply(handler, 307, location="/cached")
    )
    fetch_config("someone/model")
    assert [token for _, token in ours.asked] == [f"Bearer {TOKEN}"] * 2
    ours.answer = lambda handler: reply(handler, 302, location=stranger.address + "/elsewhere")
    fetch_config("someone/model")
    assert stranger.asked == [("/elsewhere", None)]


def test_the_token_is_never_sent_in_clear_text_over_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for url, sent in (("http://hub.example/x", False), ("https://hub.example/x", True)):
        request = hub.urllib.request.Request(url)
        hub._authorize(request)
        assert request.has_header("Authorization") is sent


def test_a_token_that_no_header_may_hold_is_refused_without_printing_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\r\nX-Evil: 1")
    assert "HF_TOKEN" in refusal()
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "no such model"), (500, "answered HTTP 500")]
)
def test_refusals_of_the_hub_are_explained(server: Hub, status: int, expected: str) -> None:
    server.answer = lambda handler: reply(handler, status, b"<html>")
    assert expected in refusal()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<html>", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "occurs 2 times"),
        (b'{"a": "' + b"x" * 2_000_000 + b'"}', "larger than 1,000,000 bytes"),
    ],
)
def test_what_the_hub_sends_is_parsed_strictly(server: Hub, body: bytes, expected: str) -> None:
    def send(handler: BaseHTTPRequestHandler) -> None:
        try:
            reply(handler, 200, body)
        except OSError:  # we hang up on what is too large
            handler.close_connection = True

    server.answer = send
    assert expected in refusal()


def test_a_hub_that_dawdles_is_given_up_on(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(60):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return
            time.sleep(0.05)

    for answer in (drip, lambda handler: time.sleep(3)):
        server.answer = answer
        start = time.monotonic()
        assert "cannot be reached" in refusal()
        assert time.monotonic() - start < 2.5


def test_no_connection_is_refused_in_one_line(hubs: tuple[Hub, Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached" in refusal()
    for endpoint in ("file:///etc", "ftp://127.0.0.1", "https://", "http://user@host", "nonsense"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert "HF_ENDPOINT must start with" in refusal()


@pytest.mark.parametrize("hub_id", ["", "model", "../../etc/passwd", "a/b/c", "../x", "a/..", "a/b?c", "a/b\nc", "é/b"])
def test_what_is_no_hub_id_is_never_asked_for(server: Hub, hub_id: str) -> None:
    assert "is not a Hub id" in refusal(hub_id)
    assert server.asked == []
