"""`ccm stream` on a tiny model: what it measures, keeps and says, and that bad texts and settings end in one message."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import toys
from context_memory import cli
from context_memory.data._files import text_of
from context_memory.errors import UserError
from context_memory.stream_report import cells, running, summary
from context_memory.streaming import Result, Span

torch.set_num_threads(1)
SIZES = ("--window", 12, "--chunk", 5, "--sink", 2, "--full-tokens", 40, "--every", 20)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def adapter(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.adapters(tmp_path_factory.mktemp("adapters"), toy)[1]


@pytest.fixture
def ccm(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run `ccm stream` in a folder with two books: exit code, what it printed, what it complained about."""
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("It was the best of times, it was the worst of times. " * 2)
    Path("two.txt").write_text("Call me Ishmael. Some years ago I went to sea; never mind how long.")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["stream", *map(str, arguments)])
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    return run


def test_the_rows_of_a_stream(ccm, toy: Path, adapter: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("one.txt", "two.txt", f"model={toy}", "model.dtype=float32", "--adapter", adapter, *SIZES, "--run_id", "mine")
    code, out, err = ccm(*command)
    assert code == 0, err
    folder = Path("result/stream/mine")
    rows = {(r["text"], r["row"]): r for r in json.loads((folder / "streams.json").read_text())["rows"]}
    assert list(rows) == [(t, r) for t in ("one", "two", "all") for r in ("concat", "window", "full")]
    assert all(f"{r['perplexity']:.3f}" in out for r in rows.values())
    for book in ("one", "two", "all"):
        ours, window, full = (rows[book, r] for r in ("concat", "window", "full"))
        assert ours["peak_entries"] == window["peak_entries"] == 2 + 12 + 8 + 2
        assert ours["entries"] < window["entries"] and ours["peak_bytes"] == window["peak_bytes"] < full["peak_bytes"]
        assert ours["head_tokens"] == full["head_tokens"] == full["tokens"] - (2 if book == "all" else 1)
        assert window["versus_window"] is None
        difference = ours["versus_window"]["mean"]
        assert difference == pytest.approx(math.log(ours["perplexity"] / window["perplexity"])) and abs(difference) > 1e-4
    assert (folder / "one.png").read_bytes()[:4] == b"\x89PNG" and "| one | concat | 106 |" in (folder / "table.md").read_text()

    once = folder / "concat" / "one.json"
    before = once.stat().st_mtime_ns
    assert ccm(*command)[0] == 0 and once.stat().st_mtime_ns == before
    code, _, err = ccm(*command, "--window", 13)
    assert code == 2 and "was measured with stream = " in err and "'window': 12" in err and "--fresh" in err
    assert ccm(*command, "--window", 13, "--fresh")[0] == 0 and once.stat().st_mtime_ns != before
    once.write_text(once.read_text()[:-90])
    code, _, err = ccm(*command, "--window", 13)
    assert code == 2 and "is damaged" in err


def test_a_book_of_the_hub(ccm, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    rows = [{"short_book_title": title, "text": f"{title}. Call me what you like. " * 3} for title in ("Emma", "Two: Years")]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: iter(rows))
    small = (f"model={toy}", "model.dtype=float32", "--every", "20", "--run_id", "mine")
    code, _, err = ccm("--hub", "pg19:1", "one.txt", *small)
    assert code == 0, err
    assert {r["text"] for r in json.loads(Path("result/stream/mine/streams.json").read_text())["rows"]} == {"one", "Two-Years", "all"}
    twice = ("--hub", "pg19", "--hub", "pg19")
    for arguments, said in ((("--hub", "pg19:9"), "no test book '9' among 2"), (twice, "two texts are called 'Emma'")):
        code, _, err = ccm(*arguments, *small)
        assert code == 2 and said in err


def test_full_is_the_stock_model_and_needs_no_adapter(ccm, toy: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = ccm("one.txt", f"model={toy}", "model.dtype=float32", *SIZES, "--out", "plain")
    assert code == 0, err
    rows = {r["row"]: r for r in json.loads(Path("plain/streams.json").read_text())["rows"]}
    assert list(rows) == ["window", "full"]
    ids = toys.tokenizer()(Path("one.txt").read_text(), return_tensors="pt")["input_ids"][:, :40]
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32)(ids, labels=ids).loss
    assert rows["full"]["perplexity"] == rows["full"]["head_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert rows["window"]["head_perplexity"] != pytest.approx(rows["full"]["perplexity"], rel=1e-3)
    assert rows["window"]["peak_entries"] == 14 and rows["full"]["peak_entries"] == 40
    code, _, err = ccm("one.txt", f"model={toy}", *SIZES, "--full-tokens", 0, "--tokens", 30, "--out", "few")
    assert code == 0 and [(r["row"], r["tokens"]) for r in json.loads(Path("few/streams.json").read_text())["rows"]] == [("window", 30)]


def test_the_sink_is_the_one_that_the_adapter_was_trained_with(ccm, toy: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, trained = toys.adapters(tmp_path / "sink", toy, pins="[sink]")
    small = (f"model={toy}", "model.dtype=float32", "--window", 12, "--chunk", 5, "--full-tokens", 0, "--every", 20)
    for said, first in ((("--adapter", trained), 1), (("--adapter", trained, "--sink", 3), 3), ((), 4)):
        code, _, err = ccm("one.txt", *small, *said, "--out", f"sink{first}")
        assert code == 0, err
        assert json.loads(Path(f"sink{first}/window/one.json").read_text())["settings"]["stream"]["sink"] == first


def test_bad_input_ends_in_one_message(ccm, toy: Path, adapter: Path) -> None:  # type: ignore[no-untyped-def]
    Path("empty.txt").write_text(" \n")
    Path("short.txt").write_text("x")
    Path("nul.txt").write_bytes(b"one\ntwo \0 three")
    Path("latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    Path("again").mkdir()
    Path("again/one.txt").write_text("Other.")
    refused = {
        (): "no text to read",
        ("nowhere.txt",): "cannot read 'nowhere.txt': No such file",
        ("again",): "cannot read 'again': Is a directory",
        ("empty.txt",): "'empty.txt' is empty",
        ("short.txt",): "text 'short' has 1 token(s)",
        ("nul.txt",): "'nul.txt' has a NUL byte at offset 8 (line 2)",
        ("latin.txt",): "byte 0xe9, which is not UTF-8 at offset 3 (line 1); is it a text? Convert it to UTF-8, or say --errors replace.",
        ("one.txt", "--errors", "guess"): "errors must be one of strict, replace, ignore, got 'guess'",
        ("one.txt", "--window", 4): "at most window=4, got chunk=64",
        ("one.txt", "--every", 1): "every must be at least 2",
        ("one.txt", "--full-tokens", 30): "full-tokens must be 0 or at least every=1000",
        ("one.txt", "again/one.txt"): "two files have one name",
        ("one.txt", "--window", 9000): "the cache reaches position 9004",
        ("one.txt", "--adapter", adapter, "--slots", 3): "slots must be a multiple of the 2 comp tokens",
        ("one.txt", "--adapter", adapter, "--cache", 70): "cache=70 leaves 58 raw tokens beside sink and memory, fewer than chunk=64",
        ("one.txt", "--slots", 8): "slots=8 are of a memory, and no row here has one; give --adapter FOLDER, or leave --slots out",
        ("one.txt", "scheme=concat"): "'concat' needs a compression adapter",
        ("one.txt", "scheme=window"): "scheme 'window' has no comp tokens",
    }
    for arguments, message in refused.items():
        code, _, err = ccm(f"model={toy}", *arguments)
        assert (code, message in err) == (2, True), (arguments, err)
    code, _, err = ccm("nul.txt", "latin.txt", f"model={toy}", "--errors", "replace", *SIZES)
    assert code == 0, err


def test_what_is_no_text_is_replaced_or_dropped_if_asked(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes(b"\xef\xbb\xbfa\0b\xe9c\r\n")
    with pytest.raises(UserError, match=r"a NUL byte at offset 4"):
        text_of(book)
    assert text_of(book, "replace") == "a\ufffdb\ufffdc\r\n" and text_of(book, "ignore") == "abc\r\n"


def test_all_texts_together_weigh_every_token_the_same() -> None:
    """And the part that `full` has read is cut text by text."""

    def result(row: str, text: str, *nats: float) -> Result:
        spans = tuple(Span(10 if text == "a" else 20, n, 1.0) for n in nats)
        return Result(row, text, spans, 5.0, 9, 99, {"tokens": sum(s.predicted for s in spans)})

    window = [result("window", "a", 10.0, 20.0), result("window", "b", 20.0, 60.0)]
    lines = {(x["text"], x["row"]): x for x in summary([*window, result("full", "a", 5.0, 5.0), result("full", "b", 10.0)])}
    assert math.log(lines["all", "window"]["perplexity"]) == pytest.approx(110 / 60)
    assert math.log(lines["all", "window"]["head_perplexity"]) == pytest.approx(50 / 40)
    assert math.log(lines["b", "window"]["head_perplexity"]) == pytest.approx(1.0)
    assert math.log(lines["all", "full"]["head_perplexity"]) == pytest.approx(20 / 40)
    one = summary([result("concat", "a", 8.0), result("window", "a", 10.0)])[0]
    assert cells(one)[4] == "-0.2000" and json.loads(json.dumps(one, allow_nan=False))["versus_window"]["low"] is None
    assert running(window[0].spans) == [(10, pytest.approx(math.e)), (20, pytest.approx(math.exp(1.5)))]
