"""RemotePolicy against a real HTTP server on this machine that answers from a script."""

import base64
import logging
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from endpoint_server import KEY, SOON, Endpoint, Request, Response, forget_settings, serving
from memory_r1.errors import EndpointError, InputError, PolicyError, PromptError
from memory_r1.policy.base import Message, Policy, Sampling
from memory_r1.policy.remote import RemotePolicy

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


def reply(text: str | None, finish: str = "stop", **message: object) -> Response:
    """What a well-behaved endpoint answers."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    return Response(
        {"object": "chat.completion", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    )


def refused(message: str, status: int = 400, **headers: str) -> Response:
    return Response({"error": {"message": message, "type": "invalid_request_error"}}, status, headers)


def text_of(request: Request) -> str:
    return str(request.body["messages"][-1]["content"])


def formats(endpoint: Endpoint) -> list[str]:
    return [request.body.get("response_format", {}).get("type", "none") for request in endpoint.requests]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(lambda request: reply("ok")) as endpoint:
        yield endpoint


def prompt(text: str) -> list[Message]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]


def ask(policy: Policy, text: str = "hello", sampling: Sampling | None = None) -> str:
    return policy.complete([prompt(text)], sampling or Sampling())[0].text


def failure(policy: Policy) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        ask(policy)
    assert "\n" not in str(caught.value)
    return caught.value


# What is sent and what comes back


def test_a_prompt_is_completed_with_text_finish_and_token_counts(endpoint: Endpoint) -> None:
    endpoint.script(reply("Paris"))
    with RemotePolicy("tiny", endpoint.url) as policy:
        (completion,) = policy.complete([prompt("capital of France?")], Sampling(max_tokens=9, temperature=0.5, seed=3))
    assert (completion.text, completion.finish) == ("Paris", "stop")
    assert (completion.prompt_tokens, completion.completion_tokens) == (7, 3)
    assert (completion.tokens, completion.logprobs) == ((), ())
    (request,) = endpoint.requests
    assert request.path == "/v1/chat/completions"
    assert request.body == {
        "model": "tiny", "messages": prompt("capital of France?"), "stream": False,
        "max_tokens": 9, "temperature": 0.5, "seed": 3,
    }  # fmt: skip


def test_a_completion_cut_by_the_token_limit_says_so(endpoint: Endpoint) -> None:
    endpoint.script(reply("Par", finish="length"))
    (completion,) = RemotePolicy("tiny", endpoint.url).complete([prompt("?")], Sampling())
    assert (completion.text, completion.finish) == ("Par", "length")


def test_an_empty_text_is_a_completion_and_missing_usage_counts_as_zero(endpoint: Endpoint) -> None:
    endpoint.script(Response({"choices": [{"message": {"content": ""}, "finish_reason": None}]}))
    (completion,) = RemotePolicy("tiny", endpoint.url).complete([prompt("?")], Sampling())
    assert (completion.text, completion.finish, completion.prompt_tokens) == ("", "stop", 0)


def test_no_prompts_need_no_request(endpoint: Endpoint) -> None:
    assert RemotePolicy("tiny", endpoint.url).complete([], Sampling()) == []
    assert endpoint.requests == []


def test_completions_keep_the_order_of_the_prompts_when_the_last_is_answered_first(endpoint: Endpoint) -> None:
    last_arrived = threading.Event()

    def answer(request: Request) -> Response:
        if text_of(request) == "3":
            last_arrived.set()
        assert last_arrived.wait(timeout=5)
        return reply(f"to {text_of(request)}")

    endpoint.answer = answer
    completions = RemotePolicy("tiny", endpoint.url).complete([prompt(str(n)) for n in range(4)], Sampling())
    assert [completion.text for completion in completions] == ["to 0", "to 1", "to 2", "to 3"]


def test_requests_in_flight_are_bounded(endpoint: Endpoint) -> None:
    lock, pair = threading.Lock(), threading.Barrier(2)
    in_flight, peak = 0, 0

    def answer(request: Request) -> Response:
        nonlocal in_flight, peak
        with lock:
            in_flight += 1
            peak = max(peak, in_flight)
        pair.wait(timeout=5)
        with lock:
            in_flight -= 1
        return reply("ok")

    endpoint.answer = answer
    RemotePolicy("tiny", endpoint.url, concurrency=2).complete([prompt(str(n)) for n in range(8)], Sampling())
    assert (peak, len(endpoint.requests)) == (2, 8)


def test_one_failed_prompt_fails_the_call_and_the_unsent_rest_is_dropped(endpoint: Endpoint) -> None:
    failed = threading.Event()

    def answer(request: Request) -> Response:
        if text_of(request) == "0":
            return refused("no such model", 404)
        failed.wait(timeout=5)
        return reply("ok")

    endpoint.answer = answer
    policy = RemotePolicy("tiny", endpoint.url, concurrency=2)
    with pytest.raises(EndpointError, match="no such model"):
        policy.complete([prompt(str(n)) for n in range(50)], Sampling())
    failed.set()
    policy.close()
    assert len(endpoint.requests) <= 3


# Retries


def test_a_server_error_is_retried(endpoint: Endpoint) -> None:
    endpoint.script(refused("loading", 503, **SOON), refused("oops", 500, **SOON), reply("ok"))
    assert ask(RemotePolicy("tiny", endpoint.url)) == "ok"
    assert len(endpoint.requests) == 3


def test_a_rate_limit_is_retried_after_the_time_the_server_names(endpoint: Endpoint) -> None:
    endpoint.script(refused("slow down", 429, **{"Retry-After": "0.05"}), reply("ok"))
    assert ask(RemotePolicy("tiny", endpoint.url)) == "ok"
    pause_s = endpoint.times[1] - endpoint.times[0]
    assert 0.05 <= pause_s < 0.35  # the client's own first pause is at least 0.375 s


def test_retries_end(endpoint: Endpoint) -> None:
    endpoint.script(refused("still\nloading", 503, **SOON))
    error = failure(RemotePolicy("tiny", endpoint.url, retries=2))
    assert str(error) == f"tiny at {endpoint.url}: HTTP 503: still loading; check the server's log, or try later"
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("status", "advice"), [(400, "model accept"), (401, "API key"), (403, "API key"), (404, "ends in /v1")]
)
def test_a_refusal_is_not_retried(endpoint: Endpoint, status: int, advice: str) -> None:
    endpoint.script(refused("no", status))
    assert advice in str(failure(RemotePolicy("tiny", endpoint.url)))
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "body", [{"error": "bad model"}, {"detail": "bad model"}, {"message": "bad model"}, b"bad model"]
)
def test_the_servers_own_words_are_found_in_any_shape(endpoint: Endpoint, body: object) -> None:
    endpoint.script(Response(body, status=400))
    assert "HTTP 400: bad model; check" in str(failure(RemotePolicy("tiny", endpoint.url)))


def test_a_server_that_is_down_is_reported_with_the_attempts_made(endpoint: Endpoint) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        error = failure(RemotePolicy("tiny", url, retries=1))
    assert re.search(
        rf"tiny at {url}: cannot be reached \(.*refused.*\), attempts made: 2; check that the server", str(error)
    )


def test_a_silent_server_times_out(endpoint: Endpoint) -> None:
    tested = threading.Event()

    def answer(request: Request) -> Response:
        tested.wait(timeout=5)
        return reply("too late")

    endpoint.answer = answer
    error = failure(RemotePolicy("tiny", endpoint.url, timeout_s=0.05, retries=0))
    tested.set()
    assert "no answer within 0.05 s, attempts made: 1; check" in str(error)


# Nonsense


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (Response(b'{"choices": [{"mess'), "not JSON"),
        (Response(b"<html>welcome</html>", headers={"Content-Type": "text/html"}), "not JSON"),
        (Response([]), r"answered \[\]"),
        (Response({"choices": []}), "expected text in choices"),
        (Response({"choices": None}), "expected text in choices"),
        (Response({"error": {"message": "upstream died"}}), "upstream died"),
        (reply(None), "expected text in choices"),
        (Response({"choices": [{"message": {"content": [{"type": "text"}]}}]}), "expected text in choices"),
    ],
)
def test_an_answer_without_text_is_an_error_not_an_empty_completion(
    endpoint: Endpoint, response: Response, complaint: str
) -> None:
    endpoint.script(response)
    assert re.search(complaint, str(failure(RemotePolicy("tiny", endpoint.url))))
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (reply(None, finish="length"), "raise max_tokens"),
        (reply(None, refusal="I cannot help with that"), "the model refused: I cannot help with that"),
        (reply("half a", finish="content_filter"), "content filter"),
        (Response({"error": {"message": "maximum context length is 4096"}}, status=400), "maximum context length"),
        (Response({"error": {"message": "prompt too long"}}, status=400), "prompt too long"),
        (Response({"error": {"message": "payload"}}, status=413), "HTTP 413"),
    ],
)
def test_a_prompt_that_is_refused_is_told_from_an_endpoint_that_fails(
    endpoint: Endpoint, response: Response, complaint: str
) -> None:
    endpoint.script(response)
    with pytest.raises(PromptError, match=complaint):
        ask(RemotePolicy("tiny", endpoint.url))


def test_half_an_emoji_becomes_a_replacement_character(endpoint: Endpoint) -> None:
    endpoint.script(reply("a \ud83d b"))
    assert ask(RemotePolicy("tiny", endpoint.url)) == "a \ufffd b"


def test_a_long_answer_is_cut_in_the_message(endpoint: Endpoint) -> None:
    endpoint.script(Response("x" * 10_000))
    assert len(str(failure(RemotePolicy("tiny", endpoint.url)))) < 500


# Schema


def answer_by_format(*accepted: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        kind = request.body.get("response_format", {}).get("type", "none")
        return reply(kind) if kind in accepted else refused(f"This response_format type is unavailable: {kind}")

    return answer


def test_a_schema_is_sent_strict(endpoint: Endpoint) -> None:
    ask(RemotePolicy("tiny", endpoint.url), sampling=Sampling(schema=SCHEMA))
    sent = endpoint.requests[0].body["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA}}


def test_a_refused_schema_steps_down_once_and_is_remembered(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answer = answer_by_format("json_object", "none")
    policy = RemotePolicy("tiny", endpoint.url)
    with caplog.at_level(logging.WARNING, logger="memory_r1"):
        texts = [ask(policy, sampling=Sampling(schema=SCHEMA)) for _ in range(2)]
    assert texts == ["json_object", "json_object"]
    assert formats(endpoint) == ["json_schema", "json_object", "json_object"]
    assert [record.message for record in caplog.records] == [
        f"{policy.name} refused fields of the request: "
        "from now on it is sent max_tokens and response_format json_object"
    ]


@pytest.mark.parametrize(
    "words",
    [
        "This model does not support response format `json_schema`.",
        "'messages' must contain the word 'json' to use 'response_format' of type 'json_object'.",
    ],
)
def test_an_endpoint_without_any_json_mode_is_asked_for_plain_text(endpoint: Endpoint, words: str) -> None:
    endpoint.answer = lambda request: refused(words, 422) if "response_format" in request.body else reply("plain")
    assert ask(RemotePolicy("tiny", endpoint.url), sampling=Sampling(schema=SCHEMA)) == "plain"
    assert formats(endpoint) == ["json_schema", "json_object", "none"]


def test_threads_that_meet_the_refusal_together_agree_on_the_same_format(endpoint: Endpoint) -> None:
    endpoint.answer = answer_by_format("json_object")
    policy = RemotePolicy("tiny", endpoint.url)
    completions = policy.complete([prompt(str(n)) for n in range(16)], Sampling(schema=SCHEMA))
    assert {completion.text for completion in completions} == {"json_object"}
    assert "none" not in formats(endpoint)


def test_a_refusal_about_something_else_is_an_error_and_changes_nothing(endpoint: Endpoint) -> None:
    endpoint.script(refused("quota exceeded"), reply("ok"))
    policy = RemotePolicy("tiny", endpoint.url)
    with pytest.raises(EndpointError, match="quota exceeded"):
        ask(policy, sampling=Sampling(schema=SCHEMA))
    ask(policy, sampling=Sampling(schema=SCHEMA))
    assert formats(endpoint) == ["json_schema", "json_schema"]


def test_what_did_not_help_is_not_remembered(endpoint: Endpoint) -> None:
    endpoint.script(refused("bad response_format"), refused("bad response_format"), refused("bad model"), reply("ok"))
    policy = RemotePolicy("tiny", endpoint.url)
    with pytest.raises(EndpointError, match="bad model"):
        ask(policy, sampling=Sampling(schema=SCHEMA))
    ask(policy, sampling=Sampling(schema=SCHEMA))
    assert formats(endpoint) == ["json_schema", "json_object", "none", "json_schema"]


def test_a_named_format_is_kept_and_its_refusal_is_an_error(endpoint: Endpoint) -> None:
    endpoint.answer = answer_by_format("none")
    with pytest.raises(EndpointError, match="unavailable: json_object"):
        ask(RemotePolicy("tiny", endpoint.url, schema="json_object"), sampling=Sampling(schema=SCHEMA))
    assert ask(RemotePolicy("tiny", endpoint.url, schema="none"), sampling=Sampling(schema=SCHEMA)) == "none"


def test_the_newer_name_of_the_token_limit_is_used_where_the_older_is_refused(endpoint: Endpoint) -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    endpoint.answer = lambda request: refused(words) if "max_tokens" in request.body else reply("ok")
    policy = RemotePolicy("tiny", endpoint.url)
    assert [ask(policy, sampling=Sampling(max_tokens=5, schema=SCHEMA)) for _ in range(2)] == ["ok", "ok"]
    assert [request.body.get("max_completion_tokens") for request in endpoint.requests] == [None, 5, 5]
    assert formats(endpoint) == ["json_schema"] * 3


# Keys and addresses


def test_the_key_is_sent_and_never_shown_even_when_the_server_echoes_it(endpoint: Endpoint) -> None:
    endpoint.script(refused(f"Incorrect API key provided: {KEY}", 401))
    policy = RemotePolicy("tiny", endpoint.url, api_key=KEY)
    error = failure(policy)
    assert endpoint.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key provided: ***" in str(error)
    shown = "".join(traceback.format_exception(error)) + repr(policy) + policy.name
    assert KEY not in shown


def test_credentials_in_the_url_are_sent_and_never_shown(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    endpoint.script(refused("nobody is called ann or knows p@ss", 403))
    policy = RemotePolicy("tiny", endpoint.url.replace("//", "//ann:p%40ss@"))
    with caplog.at_level(logging.DEBUG):
        error = failure(policy)
    token = base64.b64encode(b"ann:p@ss").decode()
    assert endpoint.requests[0].headers["authorization"] == f"Basic {token}"
    assert policy.name == "tiny@" + endpoint.url.removeprefix("http://").removesuffix("/v1")
    shown = "".join(traceback.format_exception(error)) + repr(policy) + policy.name + caplog.text
    assert not any(secret in shown for secret in ("p%40ss", "p@ss", token))


def test_address_and_key_come_from_the_environment(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    assert ask(RemotePolicy("tiny")) == "ok"
    monkeypatch.setenv("MEMORY_R1_BASE_URL", endpoint.url + "/own/")
    monkeypatch.setenv("MEMORY_R1_API_KEY", " first\n")
    ask(RemotePolicy("tiny"))
    ask(RemotePolicy("tiny", endpoint.url + "/argument", api_key="argument"))
    sent = [(request.path, request.headers["authorization"]) for request in endpoint.requests]
    assert sent == [
        ("/v1/chat/completions", "Bearer second"),
        ("/v1/own/chat/completions", "Bearer first"),
        ("/v1/argument/chat/completions", "Bearer argument"),
    ]


def test_a_local_server_needs_no_key(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "")
    assert ask(RemotePolicy("tiny", endpoint.url)) == "ok"


@pytest.mark.parametrize("base_url", [None, "https://api.openai.com/v1"])
def test_openai_itself_needs_a_key(endpoint: Endpoint, base_url: str | None) -> None:
    with pytest.raises(PolicyError, match=r"https://api.openai.com/v1 needs an API key: set MEMORY_R1_API_KEY"):
        RemotePolicy("tiny", base_url)
    assert RemotePolicy("tiny", base_url, api_key=KEY).name == "tiny@api.openai.com"


def test_a_password_in_the_address_stands_for_the_key_of_openai_itself() -> None:
    assert RemotePolicy("tiny", "https://ann:secret@api.openai.com/v1").name == "tiny@api.openai.com"


def test_a_secret_that_holds_another_is_hidden_whole(endpoint: Endpoint) -> None:
    endpoint.script(refused("wrong: abc, abcdef", 401))
    url = endpoint.url.replace("//", "//ann:abcdef@")
    assert "HTTP 401: wrong: ***, ***; check" in str(failure(RemotePolicy("tiny", url, api_key="abc")))


def test_a_key_no_header_can_carry_is_refused_unshown(endpoint: Endpoint) -> None:
    with pytest.raises(PolicyError, match="printable ASCII") as caught:
        RemotePolicy("tiny", endpoint.url, api_key="sk-\u2013dash")
    assert "dash" not in str(caught.value)


@pytest.mark.parametrize(
    "base_url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://host/v1?key=secret"]
)
def test_an_address_that_cannot_be_used_is_refused_unshown(endpoint: Endpoint, base_url: str) -> None:
    with pytest.raises(InputError, match=r"expected http\(s\)://host") as caught:
        RemotePolicy("tiny", base_url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("numbers", [{"timeout_s": 0.0}, {"retries": -1}, {"concurrency": 0}])
def test_numbers_out_of_range_are_refused(endpoint: Endpoint, numbers: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected > 0, >= 0, >= 1"):
        RemotePolicy("tiny", endpoint.url, **numbers)
