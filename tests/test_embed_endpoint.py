"""EndpointEmbedder against a real HTTP server on this machine that answers from a script."""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from endpoint_server import KEY, SOON, Endpoint, Request, Response, forget_settings, serving
from memory_r1.bank import Bank, Operation
from memory_r1.bank.endpoint import EndpointEmbedder
from memory_r1.bank.reembed import reembed
from memory_r1.errors import BankError, EndpointError, InputError, PolicyError

CLOSED = "http://127.0.0.1:9/v1"  # the discard port: nobody listens there


def vector(text: str) -> list[float]:
    """Not of length 1, and never the same for two of the tests' texts."""
    return [float(len(text)), 1.0, 2.0]


def reply(*vectors: object) -> Response:
    return Response({"data": [{"index": place, "embedding": row} for place, row in enumerate(vectors)]})


def well_behaved(request: Request) -> Response:
    return reply(*map(vector, request.body["input"]))


def embedder_at(endpoint: Endpoint, **arguments: Any) -> EndpointEmbedder:
    return EndpointEmbedder("m", endpoint.url, **{"retries": 0, **arguments})


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(well_behaved) as endpoint:
        yield endpoint


# What is sent, and what comes of it


def test_vectors_are_brought_to_length_1_in_the_order_of_the_texts(endpoint: Endpoint) -> None:
    vectors = embedder_at(endpoint).embed(["a", "bb"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [
        pytest.approx([1 / math.sqrt(6), 1 / math.sqrt(6), 2 / math.sqrt(6)]),
        pytest.approx([2 / 3, 1 / 3, 2 / 3]),
    ]
    [request] = endpoint.requests
    assert request.path == "/v1/embeddings"
    assert request.body == {"model": "m", "input": ["a", "bb"], "encoding_format": "float"}


def test_vectors_are_put_where_their_index_says(endpoint: Endpoint) -> None:
    items = [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}]
    endpoint.answer = lambda request: Response({"data": items})
    assert embedder_at(endpoint).embed(["a", "b"]).tolist() == [[1, 0], [0, 1]]


def test_vectors_without_an_index_are_in_order(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: Response({"data": [{"embedding": [1, 0]}, {"index": None, "embedding": [0, 1]}]})
    assert embedder_at(endpoint).embed(["a", "b"]).tolist() == [[1, 0], [0, 1]]


def test_many_texts_go_in_batches(endpoint: Endpoint) -> None:
    texts = ["x" * n for n in range(1, 8)]
    vectors = embedder_at(endpoint, batch=3).embed(texts)
    assert [request.body["input"] for request in endpoint.requests] == [texts[:3], texts[3:6], texts[6:]]
    assert vectors.shape == (7, 3)
    assert np.array_equal(vectors, embedder_at(endpoint).embed(texts))


def test_of_a_long_text_only_the_beginning_is_sent(endpoint: Endpoint) -> None:
    embedder_at(endpoint, max_characters=5).embed(["green tea"])
    assert endpoint.requests[0].body["input"] == ["green"]


def test_the_dimension_is_learnt_once(endpoint: Endpoint) -> None:
    embedder = embedder_at(endpoint)
    assert embedder.embed([]).shape == (0, 3)
    assert embedder.dimension == 3
    assert len(endpoint.requests) == 1


def test_the_name_is_that_of_the_model_and_nothing_is_sent_for_it(endpoint: Endpoint) -> None:
    assert embedder_at(endpoint).name == "endpoint:m"
    assert endpoint.requests == []


def test_a_failure_that_may_pass_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.answer = lambda request: well_behaved(request) if len(endpoint.requests) > 2 else Response({}, 503, SOON)
    assert embedder_at(endpoint, retries=2).embed(["a"]).shape == (1, 3)
    assert len(endpoint.requests) == 3


def test_key_and_address_come_from_the_environment_of_the_first_use(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = EndpointEmbedder("m")
    monkeypatch.setenv("OPENAI_BASE_URL", CLOSED)
    monkeypatch.setenv("MEMORY_R1_BASE_URL", endpoint.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("MEMORY_R1_API_KEY", f" {KEY}\n")
    embedder.embed(["a"])
    assert endpoint.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_credentials_in_the_address_are_sent_as_basic_authentication(endpoint: Endpoint) -> None:
    url = endpoint.url.replace("http://", "http://ann:p%40ss@")
    EndpointEmbedder("m", url).embed(["a"])
    token = base64.b64encode(b"ann:p@ss").decode()
    assert endpoint.requests[0].headers["authorization"] == f"Basic {token}"


def test_many_threads_share_one_embedder(endpoint: Endpoint) -> None:
    embedder, found = embedder_at(endpoint), {}

    def work(number: int) -> None:
        found[number] = embedder.embed(["x" * number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[n][0] == pytest.approx(np.array(vector("x" * n)) / math.hypot(n, 1, 2)) for n in range(1, 9))


# What goes wrong


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"<html>", "not JSON"),
        ([1], "expected a list under data"),
        ({"data": None}, "expected a list under data"),
        ({"data": [1, 2]}, "expected a list under data"),
        (reply([1, 2]).body, "1 vectors for 2 texts"),
        (reply([1, 2], [1, 2], [1, 2]).body, "3 vectors for 2 texts"),
        ({"data": [{"index": 0, "embedding": [1]}] * 2}, "expected each of 0 to 1 once"),
        ({"data": [{"index": [], "embedding": [1]}] * 2}, "expected each of 0 to 1 once"),
        (reply([1, 2], None).body, "None, expected a list of numbers"),
        (reply([1, 2], []).body, "[], expected a list of numbers"),
        (reply([1, 2], "AACAPwAAAEA=").body, "expected a list of numbers"),
        (reply([1, 2], [1, "2"]).body, "expected a list of numbers"),
        (reply([1, 2], [True, False]).body, "expected a list of numbers"),
        (reply([1, 2], [1, 2, 3]).body, "several lengths: [2, 3]"),
        (reply([1, 2], [0, 0.0]).body, "zero or not finite"),
        (reply([1, 2], [1, math.nan]).body, "zero or not finite"),
        (reply([1, 2], [1, math.inf]).body, "zero or not finite"),
        (reply([1, 2], [1e300, 1e300]).body, "zero or not finite"),
        (b'{"data": [{"embedding": [1, 2]}, {"embedding": [1' + b"0" * 400 + b", 2]}]}", "too large"),
        ({"error": "no such route"}, "expected a list under data"),
    ],
)
def test_nonsense_is_an_error_in_one_line(endpoint: Endpoint, body: object, what: str) -> None:
    endpoint.answer = lambda request: Response(body)
    with pytest.raises(EndpointError) as caught:
        embedder_at(endpoint).embed(["a", "b"])
    message = str(caught.value)
    assert what in message
    assert message.startswith(f"m at {endpoint.url}: answered ")
    assert "\n" not in message


def test_another_dimension_than_before_is_an_error(endpoint: Endpoint) -> None:
    embedder = embedder_at(endpoint, batch=1)
    endpoint.answer = lambda request: reply([1.0] * len(endpoint.requests))
    with pytest.raises(EndpointError, match="gave vectors of 2 numbers, before they had 1"):
        embedder.embed(["a", "b"])


def test_an_endpoint_that_is_down_is_an_error_in_one_line() -> None:
    with pytest.raises(EndpointError) as caught:
        EndpointEmbedder("m", CLOSED, retries=0).embed(["a"])
    assert str(caught.value).startswith(f"m at {CLOSED}: cannot be reached (")
    assert "attempts made: 1; check that the server runs" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
def test_a_refusal_says_what_the_server_said_but_no_secret(endpoint: Endpoint, status: int) -> None:
    said = f"no model m\nfor key {KEY} and ann:secret, secret"
    endpoint.answer = lambda request: Response({"error": {"message": said}}, status)
    embedder = EndpointEmbedder("m", endpoint.url.replace("//", "//ann:secret@"), KEY, retries=0)
    with pytest.raises(EndpointError, match=f"HTTP {status}: no model m for key \\*\\*\\*") as caught:
        embedder.embed(["a"])
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://h?q=1"]
)
def test_an_address_that_cannot_be_used_is_refused_when_it_is_needed(url: str) -> None:
    embedder = EndpointEmbedder("m", url)
    with pytest.raises(InputError, match="the base URL cannot be used"):
        embedder.embed(["a"])


def test_openai_itself_needs_a_key() -> None:
    with pytest.raises(PolicyError, match="set MEMORY_R1_API_KEY"):
        EndpointEmbedder("text-embedding-3-small").embed(["a"])


def test_a_key_that_no_header_can_carry_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(PolicyError, match="expected printable ASCII"):
        embedder_at(endpoint, api_key="ключ").embed(["a"])


@pytest.mark.parametrize("arguments", [{"timeout_s": 0}, {"retries": -1}, {"batch": 0}, {"max_characters": 0}])
def test_numbers_out_of_range_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected > 0, >= 0, >= 1, >= 1"):
        EndpointEmbedder("m", **arguments)  # type: ignore[arg-type]


# In a bank


def test_a_bank_with_an_endpoint_is_opened_with_it_again(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bank.open(tmp_path / "bank", embedder=embedder_at(endpoint)) as bank:
        bank.apply([Operation.add("likes tea"), Operation.add("has a black dog")])
    monkeypatch.setenv("MEMORY_R1_BASE_URL", endpoint.url)
    with Bank.open(tmp_path / "bank") as bank:
        assert bank.search("likes tea", k=1, mode="dense")[0].text == "likes tea"
        assert bank.verify() == []


def test_a_bank_can_be_read_without_its_endpoint(endpoint: Endpoint, tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank", embedder=embedder_at(endpoint)) as bank:
        bank.apply([Operation.add("likes tea")])
    asked = len(endpoint.requests)
    with Bank.open(tmp_path / "bank") as bank:
        assert [entry.text for entry in bank.search("tea", mode="bm25")] == ["likes tea"]
        with pytest.raises(PolicyError, match="needs an API key"):
            bank.search("tea")
    assert len(endpoint.requests) == asked


def test_an_endpoint_that_fails_in_the_middle_of_re_embedding_leaves_the_bank_and_the_work(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    with Bank.open(tmp_path / "bank", embedder=embedder_at(endpoint)) as bank:
        bank.apply([Operation.add(f"likes tea {'x' * n}") for n in range(10)])
    new = EndpointEmbedder("other", endpoint.url, retries=0)
    endpoint.requests.clear()
    endpoint.answer = lambda request: well_behaved(request) if len(endpoint.requests) < 4 else Response({}, 500)
    with pytest.raises(EndpointError, match="HTTP 500"):
        reembed(tmp_path / "bank", new, chunk=4)
    endpoint.answer = well_behaved
    with Bank.open(tmp_path / "bank", embedder=embedder_at(endpoint)) as bank:
        assert len(bank.search("tea", mode="dense")) == 10
    done = reembed(tmp_path / "bank", new, chunk=4)
    assert (done.resumed, done.embedded, done.before, done.after) == (8, 2, "endpoint:m", "endpoint:other")
    with Bank.open(tmp_path / "bank", embedder=embedder_at(endpoint)) as bank, pytest.raises(BankError):
        bank.search("tea")
