"""An endpoint that misbehaves in every way that is known costs rows at most: never a wrong number, a row twice, or a key in a file."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import toys
from context_memory import cli, reply
from context_memory.client import Client, NoReply, Settings, pause, retry_after
from context_memory.data.gsm8k import Gsm8k
from context_memory.endpoint import DOWN, Job
from context_memory.errors import InputError, UserError
from context_memory.text import Example

Answer = tuple[int, dict[str, str], str] | None
"""Status, headers and body; None: the connection is cut after half a body."""
KEY = "sk-secret-7"
NUMBERS = range(12)


def said(text: Any) -> Answer:
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}}]})


def solution(i: int) -> str:
    return f"{i} + 1 = {i + 1} figs.\nTwice that is {i + 1} * 2 = {2 * i + 2}.\n#### {2 * i + 2}"


def example(i: int) -> Example:
    return Example(f"Ann has {i} figs?", solution(i), id=str(i))


def copied(question: str) -> str:
    """What a model that does as it is told would write."""
    return question.rpartition("Solution:\n")[2].partition("\n\n(")[0].replace("\n", " <COMP>\n")


class Endpoint(ThreadingHTTPServer):
    """Answers with `behave(question, how many times it was asked before)`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[str, int], Answer] = lambda question, _: said(copied(question))
        self.asked, self.bodies = list[str](), list[dict[str, Any]]()
        self.hold, self.lock = threading.Event(), threading.Lock()

    @property
    def settings(self) -> Settings:
        return Settings(f"http://127.0.0.1:{self.server_port}/v1", "m", KEY, tries=3, first_wait=0.001, longest_wait=0.002, timeout=5)

    def handle_error(self, *_: object) -> None: ...  # a client that no longer waits


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        (message,) = body["messages"]
        problem = message["content"].partition("Problem:\n")[2].partition("\n")[0]
        with self.server.lock:
            before = self.server.asked.count(problem)
            self.server.asked.append(problem)
            self.server.bodies.append(body | {"key": self.headers["Authorization"]})
        status, headers, text = self.server.behave(message["content"], before) or (200, {"Content-Length": "999"}, '{"cho')
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(text.encode()))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        for byte in text.encode() if "Drip" in headers else ():
            if self.server.hold.wait(0.02):
                break
            self.wfile.write(bytes([byte]))
        if "Drip" not in headers:
            self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.001}, daemon=True).start()
        yield server
        server.hold.set()
        server.shutdown()


PASSING: dict[str, Answer] = {
    "HTTP 429": (429, {"Retry-After": "3600"}, "slow down"),
    "HTTP 500": (500, {}, "oh"),
    "no connection": None,
    "a reply that is no JSON": (200, {}, "<html>Welcome</html>"),
    "a reply that is no JSON (half)": (200, {}, '{"choices": [{"mess'),
    "a reply without a message": (200, {}, '{"error": "busy"}'),
    "a reply without a message (none)": (200, {}, '{"choices": []}'),
    "a reply without a message (no text)": said([1]),
    "an empty message": said(" \n"),
    "an empty message (null)": said(None),
}


def test_what_may_pass_is_asked_again_and_given_up_with_a_reason(endpoint: Endpoint) -> None:
    with Client(endpoint.settings) as client:
        for reason, answer in PASSING.items():
            endpoint.asked.clear()
            endpoint.behave = lambda question, before, answer=answer: said("fine") if before == 2 else answer
            assert client.ask("Problem:\na") == "fine" and len(endpoint.asked) == 3
            endpoint.behave = lambda question, before, answer=answer: answer
            with pytest.raises(NoReply) as fault:
                client.ask("Problem:\nb")
            assert fault.value.reason == reason.partition(" (")[0] and endpoint.asked.count("b") == 3
        endpoint.behave = lambda question, before: (400, {}, "too long")
        with pytest.raises(NoReply, match=r"HTTP 400 \(too long\)"):
            client.ask("Problem:\nc")
        client.stopped.set()
        with pytest.raises(NoReply, match="stopped"):
            client.ask("Problem:\nc")
    assert endpoint.asked.count("c") == 1  # what is refused is not asked twice, and nothing is after a stop


@pytest.mark.parametrize("message", ["3 + 4 = 7 \ud83d <COMP>\n#### 7", "3 + 4 \0= 7"])
def test_a_message_that_cannot_be_written_is_no_reply(endpoint: Endpoint, message: str) -> None:
    endpoint.behave = lambda *_: said(message)
    with Client(endpoint.settings) as client, pytest.raises(NoReply, match="half a character or a NUL"):
        client.ask("Problem:\na")


def test_a_silent_endpoint_is_not_waited_for(endpoint: Endpoint) -> None:
    endpoint.behave = lambda question, before: said("late") if endpoint.hold.wait(9) else None
    with Client(replace(endpoint.settings, timeout=0.04, tries=2)) as client, pytest.raises(NoReply, match="no reply in time"):
        client.ask("Problem:\na")
    assert len(endpoint.asked) == 2


def test_an_endpoint_that_drips_is_not_waited_for_either(endpoint: Endpoint) -> None:
    """A byte every 20 ms is never silent for 100."""
    endpoint.behave = lambda question, before: (200, {"Drip": "1"}, said("x" * 999)[2])
    began = time.monotonic()
    with (
        Client(replace(endpoint.settings, timeout=0.1, tries=2)) as client,
        pytest.raises(NoReply, match=r"no reply in time \(0\.1 s, \d+ byt"),
    ):
        client.ask("Problem:\na")
    assert len(endpoint.asked) == 2 and time.monotonic() - began < 5
    endpoint.behave = lambda question, before: (200, {"Drip": "1"}, said("ok")[2])
    with Client(replace(endpoint.settings, timeout=20)) as client:
        assert client.ask("Problem:\na") == "ok"


def test_waits_double_and_follow_retry_after_up_to_the_longest(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings("http://a/v1", "m", first_wait=1.0, longest_wait=20.0)
    assert pause(settings, 0, 7.0) == 0
    for attempt, least, most in ((1, 0.5, 1), (2, 1, 2), (4, 4, 8), (9, 10, 20)):
        waits = {pause(settings, attempt) for _ in range(50)}
        assert least <= min(waits) < max(waits) <= most
    assert pause(settings, 1, 7.0) == 7 and pause(settings, 1, 3600.0) == 20
    endpoint.behave = lambda question, before: (429, {"Retry-After": str(7 + 3600 * before)}, "")
    waits: list[float] = []
    with Client(replace(endpoint.settings, longest_wait=20.0)) as client:
        monkeypatch.setattr(client.stopped, "wait", waits.append)
        with pytest.raises(NoReply):
            client.ask("Problem:\na")
    assert waits == [0, 7, 20]
    assert retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e6 and retry_after("-3") == retry_after("") == 0


TO_MEND = {401: "environment variable OPENAI_API_KEY", 403: "may not use model 'm'", 404: "most end in /v1", 308: "sends on to http://b"}


@pytest.mark.parametrize(("status", "message"), TO_MEND.items())
def test_what_a_person_has_to_mend_ends_the_run_without_the_key(endpoint: Endpoint, tmp_path: Path, status: int, message: str) -> None:
    endpoint.behave = lambda question, before: (status, {"Location": "http://b"}, f"wrong: {KEY}")
    with pytest.raises(UserError, match=message) as error:
        Job([*map(example, NUMBERS)], replace(endpoint.settings, workers=1), tmp_path / "a.jsonl").run()
    assert KEY not in str(error.value) + repr(endpoint.settings) and "the same command goes on" in str(error.value)
    assert len(endpoint.asked) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://", "http://me:word@a/v1", "http://a/v1?key=1", "http://a:b/v1"])
def test_a_url_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="--endpoint"):
        Settings(url, "m")


MARKED = "3 + 1 = 4 figs.\n<COMP>Twice that is 4 * 2 = 8.\n<COMP>#### 8"


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        (MARKED, MARKED),
        (f"```text\n{MARKED}\n```", MARKED),
        (f"<think>hm <COMP> 9</think>\n\n{MARKED}", MARKED),
        ("<COMP>\n3 + 1 = 4 figs. <COMP> <COMP>\n\nTwice that is 4 * 2 = 8. <COMP> #### 8 <COMP>", MARKED),
        ("3 + <COMP> 1 <COMP> = <COMP> 4 fi<COMP>gs.<COMP> Twice that is 4 * 2 = 8. <COMP>\n#### <COMP> 8", MARKED),
        (MARKED.replace("= 8.", "= 9."), "other numbers"),
        (MARKED.replace("figs", "dates"), "other words"),
        (MARKED.replace("#### 8", "So 8."), "no final answer"),
        (MARKED.replace("#### 8", "#### 9"), "another final answer"),
        (solution(3), "no marker at the end of a step"),
        ("3 <COMP> + 1 = 4 figs.\nTwice that is 4 <COMP> * 2 = 8.\n#### 8<COMP>", "no marker at the end of a step"),
    ],
)
def test_a_copy_gives_its_markers_or_a_reason(text: str, marked: str) -> None:
    found = reply.check(text, example(3), rewrite=False)
    assert (found.marked or found.fault) == marked
    assert not found.marked or found.marked.replace("<COMP>", "") == solution(3)


def test_a_solution_of_its_own_has_to_end_in_the_known_answer() -> None:
    own = "Four figs, 3 + 1 = 4. <COMP>\n\nTwo times four: 4 * 2 = <COMP> 8. <COMP>\n\n#### 8 <COMP>"
    marked = reply.check(own, example(3), rewrite=True).marked
    assert marked == "Four figs, 3 + 1 = 4.\n\n<COMP>Two times four: 4 * 2 = 8.\n\n<COMP>#### 8"
    assert reply.check(own.replace("#### 8", "#### 7"), example(3), rewrite=True).fault == "another final answer"
    assert reply.check(own, example(3), rewrite=False).fault == "other words"
    assert solution(3) not in reply.question(example(3), rewrite=True)


def test_what_cannot_be_used_is_asked_again_then_left_out_and_counted(endpoint: Endpoint, tmp_path: Path) -> None:
    def behave(question: str, before: int) -> Answer:
        if "Ann has 5" in question or ("Ann has 2" in question and not before):
            return said(copied(question).replace("= ", "= 9"))
        return (500, {}, "") if "Ann has 7" in question else said(copied(question))

    endpoint.behave = behave
    (tmp_path / "a.json.partial.jsonl").write_bytes(b'{"endpo')  # killed at its first line
    job = Job([*map(example, NUMBERS), Example("<COMP>?", solution(1))], endpoint.settings, tmp_path / "a.json")
    job.run()
    rows = job.finish()
    assert [r["question"] for r in rows] == [example(i).prompt for i in NUMBERS if i not in (5, 7)]
    assert job.reasons() == "1 HTTP 500, 1 could not be read back, 1 other numbers"
    assert [endpoint.asked.count(example(i).prompt) for i in (1, 2, 5, 7)] == [1, 2, 3, 3]
    assert sum("(A reply was refused before: other numbers.)" in b["messages"][0]["content"] for b in endpoint.bodies) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    data = Gsm8k(path=str(tmp_path / "a.json"))
    read = [e for split in ("train", "validation", "test") for e in data.examples(split)]
    assert {e.target for e in read} == {r["original_reasoning"] for r in rows} and all(len(e.cuts) == 2 for e in read)
    with pytest.raises(UserError, match="is there already"):
        Job(job.missing, endpoint.settings, tmp_path / "a.json")


def test_a_run_that_was_killed_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    """The endpoint goes down, then a line is cut in the middle; what is whole is not asked again."""
    endpoint.behave = lambda question, before: said(copied(question)) if len(endpoint.asked) <= 5 else None
    out, partial, examples = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial.jsonl", [*map(example, NUMBERS)]
    settings = replace(endpoint.settings, workers=1)
    with pytest.raises(UserError, match=rf"no reply to {DOWN} questions in succession.*5 of 12 solutions are kept.*same command goes on"):
        Job(examples, settings, out).run()
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6 and KEY.encode() not in partial.read_bytes() and not out.exists()
    partial.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    for model, rewrite, message in (("n", False, 'begun with model = "m", got "n"'), ("m", True, "begun with prompt")):
        with pytest.raises(UserError, match=message):
            Job(examples, replace(settings, model=model), out, rewrite)
    endpoint.asked.clear()
    endpoint.behave = lambda question, before: said(copied(question))
    job = Job(examples, endpoint.settings, out)
    assert partial.read_bytes() == b"".join(lines[:-1])  # else the next row would be written into the rest of that line
    job.run()
    assert sorted(endpoint.asked) == sorted(e.prompt for e in examples[4:])
    assert (rows := job.finish()) == [json.loads(line) for line in out.read_text().splitlines()] and len(rows) == 12
    assert [r["original_reasoning"] for r in rows] == [e.target for e in examples] and not partial.exists()


def test_an_endpoint_that_refuses_connections_and_a_model_that_is_of_no_use(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.behave = lambda question, before: said("#### 1")
    job = Job([example(1), example(2)], endpoint.settings, tmp_path / "a.jsonl")
    job.run()
    with pytest.raises(UserError, match=r"no solution could be used \(2 another final answer\); take another --model"):
        job.finish()
    with Endpoint() as other:
        nobody = other.settings
    with pytest.raises(UserError, match=r"no connection.*0 of 1 solutions are kept"):
        Job([example(1)], nobody, tmp_path / "b.jsonl").run()


def test_the_command(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    toy = toys.folder(tmp_path / "toy")
    Path("my.jsonl").write_text("".join(json.dumps({"question": e.prompt, "answer": e.target}) + "\n" for e in map(example, range(40))))
    url = endpoint.settings.url
    common = ("annotate", f"model={toy}", "data=gsm8k", "data.path=my.jsonl", "data.max_train_samples=20", "--endpoint", url)

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([*common, *more])
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, err = run("--model", "m", "--price-in", "2", "--price-out", "10", "--out", "a.jsonl")
    examples = Gsm8k(path="my.jsonl").examples("train")[:20]
    into = sum(len(reply.question(e, False)) for e in examples)
    outward = sum(len(e.target) + 3 * len(" <COMP>") for e in examples)  # one token a character
    assert code == 2 and "say --yes" in err and not endpoint.asked
    assert f"20 of 20 solutions to ask {url} for: about {into:,} tokens in, {outward:,} out" in out
    assert f"price {(2 * into + 10 * outward) / 1e6:,.4f};" in out
    for stdin, there in (("n\n", False), ("y\n", True)):
        terminal = io.StringIO(stdin)
        monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stdin", terminal)
        code, out, err = run("--model", "m", "--out", "b.json")
        assert (code == 0) == Path("b.json").exists() == bool(endpoint.asked) == there and "go on? [y/N]" in out + err
    code, out, err = run("--model", "m", "--api-key-env", "MY_KEY", "--yes", "--out", "a.jsonl")
    assert code == 0 and out.endswith("20 solutions, 2.0 marks each: a.jsonl\n") and KEY not in out + err
    assert len(Path("a.jsonl").read_text().splitlines()) == 20 and {b["model"] for b in endpoint.bodies} == {"m"}
    assert [b["key"] for b in endpoint.bodies] == [None] * 20 + [f"Bearer {KEY}"] * 20
    for more, message in (
        ((), "--endpoint and --model go together"),
        (("--model", "m", "boundary=rules"), "leave boundary= out"),
        (("--model", "m", "--price-in", "1"), "--price-in and --price-out go together"),
        (("--model", "m", "--api-key-env", "NONE"), "--api-key-env=NONE: there is no such environment variable"),
    ):
        code, _, err = run(*more)
        assert code == 2 and message in err and "Traceback" not in err
