"""`ccm stream`: texts of any length through a cache of one size; perplexity with a memory, without one, and with the full context."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stream(
    arguments: Annotated[list[str] | None, typer.Argument(help="Text files; and key=value, e.g. model.name=smollm2-135m-instruct.")] = None,
    hub: Annotated[
        list[str] | None,
        typer.Option(help="A test book of PG19 from the hub (emozilla/pg19): pg19 the first, pg19:3 by number, 'pg19:words of its title'."),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="An adapter folder; without one, the rows window and full alone.")] = None,
    window: Annotated[int, typer.Option(help="The latest raw tokens that are held.")] = 160,
    chunk: Annotated[int, typer.Option(help="Tokens that are compressed at once when the window is full, the oldest ones.")] = 64,
    slots: Annotated[
        int | None, typer.Option(help="Most entries of an adapter's memory (concat); the oldest go. Default: four chunks' comp tokens.")
    ] = None,
    sink: Annotated[
        int | None, typer.Option(help="First tokens of the text that stay for good. Default: the adapter's own pins.sink, else 4.")
    ] = None,
    spacing: Annotated[str, typer.Option(help="cache: entry behind entry. text: as far apart as the text was, as in training.")] = "cache",
    cache: Annotated[
        int | None, typer.Option(help="Entries of sink, memory and window together: takes the place of --window, which is what they leave.")
    ] = None,
    errors: Annotated[str, typer.Option(help="Bytes that are not UTF-8, and NUL: strict, replace or ignore.")] = "strict",
    tokens: Annotated[int | None, typer.Option(help="Read this much of every text.")] = None,
    full_tokens: Annotated[int, typer.Option("--full-tokens", help="How much of every text the row full reads; 0: no such row.")] = 4096,
    every: Annotated[int, typer.Option(help="Tokens of a span: a point of the plot, an item of the intervals.")] = 1000,
    run_id: Annotated[str | None, typer.Option("--run_id", "--run-id", help="Name of the run; the same name goes on.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to, instead of result/stream/<run_id>.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what the folder holds.")] = False,
) -> None:
    """Read texts of any length in constant memory: attention sink, compressed memory and a window of raw tokens.

    Beside it: sink and window with as many entries, and the full context of the first tokens. Positions count within the cache. Of an
    adapter's pins the sink alone is kept.
    """
    from context_memory import console, rows, stream_report, streaming
    from context_memory.data._files import text_of
    from context_memory.data._hub import book
    from context_memory.errors import UserError
    from context_memory.overrides import is_override
    from context_memory.stream import Settings

    given = [a for a in arguments or [] if is_override(a)]
    files = [Path(a) for a in arguments or [] if not is_override(a)]
    if not (files or hub):
        raise UserError("no text to read; give a file, as in: ccm stream book.txt --adapter FOLDER, or a book of the hub: --hub pg19.")
    options = streaming.Options(tokens, full_tokens, every)
    texts = {file.stem: text_of(file, errors, ", or say --errors replace") for file in files}
    if len(texts) < len(files):
        raise UserError(f"two files have one name: {', '.join(sorted(f.stem for f in files))}; rename one.")
    for title, text in map(book, hub or []):
        if (called := rows.slug(title)) in texts:
            raise UserError(f"two texts are called '{called}'; read one of them.")
        texts[called] = text
    chosen = adapter or any(o.startswith(("model.adapter=", "scheme=")) for o in given)
    config = rows.configure(given if chosen else [*given, "scheme=full"], None, adapter)
    first = config.pins.get("sink", {}).get("budget", Settings.sink) if sink is None else sink
    settings = Settings(window, chunk, slots, first, spacing, cache)
    name = run_id or config.run_id or (Path(config.model.adapter or config.model.name).name + "-" + "-".join(texts))
    folder = out or Path(config.output) / "stream" / rows.slug(name)
    with console.bar() as progress:
        results = streaming.run(config, texts, settings, options, folder, fresh=fresh, progress=progress)
    stream_report.publish(results, folder)
