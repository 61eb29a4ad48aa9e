"""One reply of an OpenAI-compatible endpoint, whatever lies between: asked again after growing waits, or given up with a reason.

What may pass (time-outs, cut connections, 429, 5xx, a body that is no reply) is tried again; what a person has to mend (URL, key,
model name) ends the run at once. Protocol: POST {url}/chat/completions, as OpenAI, vLLM, llama.cpp and Ollama answer it.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx2

from context_memory.data._fields import sound
from context_memory.errors import InputError, UserError

PASSING = (408, 409, 425, 429)
"""Refusals that the same request may get over, besides all 5xx."""
TO_MEND = {
    401: "the key is missing or not accepted; put it into the environment variable {key_env} (or name another, --api-key-env)",
    402: "the account behind the key has to be paid; the key is that of {key_env}",
    403: "the key in {key_env} may not use model '{model}'; take another key or another --model",
    404: "there is no such URL, or no model '{model}'; --endpoint is a base URL (most end in /v1), --model a name that it serves",
    405: "nobody answers chat completions there; --endpoint is a base URL (most end in /v1)",
}


@dataclass(frozen=True)
class Settings:
    """Where to ask, and how patiently."""

    url: str
    """Base URL, as http://localhost:8000/v1."""
    model: str
    key: str = field(default="", repr=False)
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, for messages."""
    workers: int = 4
    """Requests under way at a time."""
    timeout: float = 120.0
    """Seconds until a reply has to be whole."""
    tries: int = 6
    """Requests for one reply."""
    first_wait: float = 1.0
    """Seconds before the second request; each further wait is twice as long."""
    longest_wait: float = 60.0
    """Seconds; a longer Retry-After is cut to it as well."""

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as e:
            raise InputError(f"--endpoint={self.url!r} is no URL ({e}); give one like http://localhost:8000/v1.") from e
        if url.userinfo or url.query:  # they would be written beside the rows
            raise InputError(f"--endpoint may hold no password and no '?...'; put the key into {self.key_env}.")
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"--endpoint must be like http://localhost:8000/v1, got '{self.url}'.")
        if not self.model:
            raise InputError("--model is empty; name a model that the endpoint serves.")
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError(f"the key in {self.key_env} holds letters that no key has; copy it again.")


class NoReply(Exception):
    """A question that got no reply."""

    def __init__(self, reason: str, detail: str = "", again: bool = True, wait: float = 0.0) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.again, self.wait = reason, again, wait


class Client:
    """Asks; may be used by several threads. When `stopped` is set, waits end and nothing more is asked."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.stopped = settings, threading.Event()
        head = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
        self._http = httpx2.Client(timeout=settings.timeout, headers=head)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def ask(self, question: str) -> str:
        """The text of the reply.

        Raises:
            NoReply: none came, although it was asked for `tries` times; or this question was refused.
            UserError: the endpoint will refuse every question.
        """
        fault = NoReply("stopped")
        for attempt in range(self.settings.tries):
            if self.stopped.wait(pause(self.settings, attempt, fault.wait)):
                break
            try:
                return self._once(question)
            except NoReply as e:
                fault = e
            except UserError:
                self.stopped.set()  # here, and not where it is heard of: this thread would have asked the next question by then
                raise
            if not fault.again:
                break
        raise fault

    def _once(self, question: str) -> str:
        body = {"model": self.settings.model, "messages": [{"role": "user", "content": question}]}
        try:
            with self._http.stream("POST", self.settings.url.rstrip("/") + "/chat/completions", json=body) as response:
                came = self._whole(response)
        except httpx2.TimeoutException as e:
            raise NoReply("no reply in time", f"{self.settings.timeout:g} s") from e
        except httpx2.HTTPError as e:
            raise NoReply("no connection", str(e) or type(e).__name__) from e
        self._accept(response, came)
        try:
            text = content(json.loads(came))
        except (ValueError, RecursionError) as e:
            raise NoReply("a reply that is no JSON", self._short(came)) from e
        except LookupError as e:
            raise NoReply("a reply without a message", self._short(came)) from e
        if not text.strip():
            raise NoReply("an empty message")
        if not sound(text) or "\0" in text:
            raise NoReply("a message with half a character or a NUL in it")
        return text

    def _whole(self, response: httpx2.Response) -> str:
        """The body. httpx's own limit is one of silence: an endpoint that sends a byte now and then would never meet it."""
        began, came = time.monotonic(), b""
        for part in response.iter_bytes():
            came += part
            if time.monotonic() - began > self.settings.timeout or self.stopped.is_set():
                raise NoReply("no reply in time", f"{self.settings.timeout:g} s, {len(came):,} bytes so far")
        return came.decode(errors="replace")

    def _accept(self, response: httpx2.Response, came: str) -> None:
        code, settings = response.status_code, self.settings
        if response.is_redirect:
            raise UserError(f"{settings.url} sends on to {response.headers.get('location')}; give --endpoint the URL that answers itself.")
        if code in TO_MEND:
            why = TO_MEND[code].format(key_env=settings.key_env, model=settings.model)
            raise UserError(f"{settings.url} says {code}: {why}. It said: {self._short(came)}")
        if not response.is_success:
            again = code in PASSING or code >= 500
            raise NoReply(f"HTTP {code}", self._short(came), again, retry_after(response.headers.get("retry-after", "")))

    def _short(self, came: str) -> str:
        """The beginning of it, without the key, which some endpoints repeat."""
        text = " ".join(came.split())
        text = text.replace(self.settings.key, "***") if self.settings.key else text
        return text[:200] or "nothing"


def content(reply: Any) -> str:
    """The message in a parsed body.

    Raises:
        LookupError: there is none.
    """
    try:
        found = reply["choices"][0]["message"]["content"]
    except TypeError as e:
        raise LookupError(str(e)) from e
    if found is not None and not isinstance(found, str):
        raise LookupError(f"the message is a {type(found).__name__}")
    return found or ""


def pause(settings: Settings, attempt: int, asked_for: float = 0.0) -> float:
    """Seconds before request number `attempt` (from 0): doubled each time, less up to a half so that workers do not come back together;
    no less than the endpoint asked for; never over `longest_wait`."""
    if not attempt:
        return 0.0
    grown = min(settings.first_wait * 2 ** (attempt - 1), settings.longest_wait) * random.uniform(0.5, 1.0)
    return min(max(grown, asked_for), settings.longest_wait)


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 for anything else.

    >>> retry_after("7"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
    (7.0, 0.0, 0.0)
    """
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a zone
        return 0.0
