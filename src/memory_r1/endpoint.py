"""A model at an OpenAI-compatible address: the client that reaches it, and its failures in one line without secrets.

Retries, their backoff and Retry-After are the `openai` client's own work. Left out: what is asked of the model, and
what its replies must hold.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from memory_r1.errors import EndpointError, InputError, PolicyError

if TYPE_CHECKING:
    import openai

_OPENAI_URL = "https://api.openai.com/v1"
_LOCAL_KEY = "none"  # servers without a key ignore it, but the client insists on one
_CONNECT_TIMEOUT_S = 5.0


class Endpoint:
    """A model and where it is served; neither `url`, `host` nor any message holds its key or password.

    Args:
        model: the name the endpoint knows the model by.
        base_url: up to and including /v1; else MEMORY_R1_BASE_URL, OPENAI_BASE_URL, then OpenAI itself. A
            `user:password@` in it is sent as basic authentication, in place of the key.
        api_key: else MEMORY_R1_API_KEY, then OPENAI_API_KEY; may be absent unless the endpoint is OpenAI itself.
        timeout_s: seconds that one attempt may stay silent; connecting is given at most 5 of them.
        retries: further attempts after a timeout, a failed connection, or HTTP 408, 409, 429 or 5xx. The pause doubles
            from half a second to 8, less up to a quarter at random; a Retry-After within the client's limit goes first.

    Raises:
        InputError: the base URL is no http(s) address.
        PolicyError: OpenAI's own endpoint without a key, or a key that no header can carry.
    """

    def __init__(self, model: str, base_url: str | None, api_key: str | None, timeout_s: float, retries: int) -> None:
        parts = _split(_first(base_url, "MEMORY_R1_BASE_URL", "OPENAI_BASE_URL") or _OPENAI_URL)
        userinfo, _, self.host = parts.netloc.rpartition("@")
        self.url = f"{parts.scheme}://{self.host}{parts.path.rstrip('/')}"
        self.model, self._timeout_s, self._retries = model, timeout_s, retries
        key = _first(api_key, "MEMORY_R1_API_KEY", "OPENAI_API_KEY")
        if key is None and not userinfo and parts.hostname == "api.openai.com":
            raise PolicyError(f"{self.url} needs an API key: set MEMORY_R1_API_KEY, or give another base URL")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise PolicyError(
                "the API key holds characters no HTTP header can carry, expected printable ASCII: copy it again"
            )
        self._key = key or _LOCAL_KEY
        self._token = b64encode(unquote(userinfo).encode()).decode()  # what basic authentication sends
        password = parts.password or ""
        secrets = {self._key, self._token, userinfo, password, unquote(password)} - {"", _LOCAL_KEY}
        self._secrets = sorted(secrets, key=len, reverse=True)  # one may hold another

    def client(self) -> openai.OpenAI:
        """A new client, safe to share between threads; nothing is sent for it."""
        import openai  # half a second, so only where an endpoint is used

        return openai.OpenAI(
            api_key=self._key,
            base_url=self.url,
            timeout=openai.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_TIMEOUT_S)),
            max_retries=self._retries,
            default_headers={"Authorization": f"Basic {self._token}"} if self._token else {},
        )

    def parse(self, body: str) -> object:
        """The JSON of an answer, of which nothing is to be taken for granted; raises EndpointError."""
        try:
            return json.loads(body)
        except ValueError:
            what = f"answered with a body that is not JSON: {body!r}"
            raise self.error(what, "check that the base URL ends in /v1") from None

    def explain(self, error: openai.APIError) -> EndpointError:
        """What the client ran into, as `error` says it."""
        import openai

        attempts = f"attempts made: {self._retries + 1}"
        match error:
            case openai.APITimeoutError():
                what = f"no answer within {self._timeout_s:g} s, {attempts}"
                return self.error(what, "check that the server is not overloaded, or raise the timeout")
            case openai.APIConnectionError():
                what = f"cannot be reached ({str(error.__cause__ or '') or error}), {attempts}"
                return self.error(what, "check that the server runs and that the base URL is right")
            case openai.APIStatusError():
                return self.error(refusal(error), "check the base URL, the model's name and the API key")
        return self.error(str(error), "check that it is an OpenAI-compatible endpoint")

    def error(self, what: str, check: str) -> EndpointError:
        """To be raised `from None`: a server may have echoed the key into the cause."""
        return EndpointError(self.message(what, check))

    def message(self, what: str, check: str) -> str:
        """One line without secrets: the model, where it is, what happened and what to check."""
        for secret in self._secrets:
            what = what.replace(secret, "***")
        what = " ".join(what.split())
        what = what if len(what) <= 300 else f"{what[:300]}..."
        return f"{self.model} at {self.url}: {what}; {check}"


def refusal(error: openai.APIStatusError) -> str:
    """The HTTP status and the server's own words: the message of its error where there is one, else the whole body."""
    body = error.body
    message = body.get("message") or body.get("detail") if isinstance(body, dict) else None
    return f"HTTP {error.status_code}: {message or body or 'no explanation given'}"


def _split(url: str) -> SplitResult:
    # the URL is not quoted: what is wrong with it may stand beside a password
    unusable = InputError("the base URL cannot be used, expected http(s)://host[:port]/path as in http://host:8000/v1")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise unusable from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise unusable
    return parts


def _first(argument: str | None, *variables: str) -> str | None:
    """The argument, else the first of the environment variables that is set and not blank."""
    values = (argument, *(os.environ.get(variable) for variable in variables))
    return next((value.strip() for value in values if value and value.strip()), None)
