"""The documentation is run: console blocks with their output, Python blocks, and every command's flags."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from memory_r1 import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "console", "sh")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("memory-r1 ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_docs_parses(page: Path) -> None:
    for command in commands(page):
        assert cli.parse(shlex.split(command, comments=True)[1:]) is not None, command


@pytest.mark.parametrize("name", ["own-data.md", "bank.md"])
def test_a_page_does_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    page = ROOT / "docs" / name
    monkeypatch.chdir(tmp_path)
    Path("mara.jsonl").write_text(blocks(page, "jsonl")[0], encoding="utf-8")
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", blocks(page, "console")[0], re.MULTILINE):
        capsys.readouterr()
        assert cli.main(shlex.split(command)[1:]) == 0, command
        assert capsys.readouterr().out == shown, command


class _Endpoint(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that always says hello."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "hello"}
        body = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for body in (block.replace("http://localhost:8000/v1", endpoint) for block in blocks(page, "python")):
        names: dict[str, object] = {}
        exec(compile(body, str(page), "exec"), names)
        assert names
