"""An OpenAI-compatible endpoint for tests: a real HTTP server on this machine that answers from a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

KEY = "sk-test-5b1f0c"
SOON = {"retry-after-ms": "1"}
VARIABLES = ("MEMORY_R1_API_KEY", "MEMORY_R1_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY")


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class Response:
    body: object
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Endpoint:
    """Answers with a function of the request, or with the next response of a list; the last one is repeated."""

    def __init__(self, url: str, answer: Callable[[Request], Response]) -> None:
        self.url, self.answer = url, answer
        self.requests: list[Request] = []
        self.times: list[float] = []

    def script(self, *responses: Response) -> None:
        queue = list(responses)
        self.answer = lambda request: queue.pop(0) if len(queue) > 1 else queue[0]


@contextmanager
def serving(answer: Callable[[Request], Response]) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            endpoint.requests.append(request)
            endpoint.times.append(time.monotonic())
            response = endpoint.answer(request)
            raw = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
            self.send_response(response.status)
            for name, value in {"Content-Type": "application/json", **response.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            with suppress(ConnectionError):  # a client that timed out has hung up
                self.end_headers()
                self.wfile.write(raw)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    server.shutdown()
    thread.join()
    server.server_close()


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, addresses and proxies of whoever runs the tests."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # goes before NO_PROXY
