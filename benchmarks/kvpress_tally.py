"""What the presses of kvpress keep of a solution while it is being written: tally problems, at the cache size of our rows.

kvpress pins an older transformers, so the model and the ids of the prompts go through a folder, and it runs in an environment of its own:

    python benchmarks/kvpress_tally.py prepare WORK
    python -m venv WORK/env && WORK/env/bin/pip install torch==2.13.0 kvpress==0.5.5
    WORK/env/bin/python benchmarks/kvpress_tally.py answer WORK [--room 48] [--interval 8] [--only full knorm ...]
    python benchmarks/kvpress_tally.py table WORK

`DecodingPress` compresses every `interval` tokens down to a number of entries for all that was read and written; presses cannot spare
the prompt, so they get `room` entries more than the prompt has. They choose a layer and a head at a time. What is held is measured on the
tensors of the cache when a layer attends, as our decode loop counts it. Prompts of one length are a batch, each once for every press
(kvpress knows no padding). `answer` goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

MODEL = "smollm2-135m-instruct"
TASK = Path(__file__).resolve().parents[1] / "adapters" / f"{MODEL}-tally-task"
DATA = {"seed": 0, "max_steps": 6, "max_operand": 5}
LIMIT = 256
"""New tokens."""


@dataclass
class Answer:
    """One answer of one row; entries are counted a layer, bytes over all layers."""

    row: str
    id: str
    prompt_tokens: int
    ids: list[int] = field(default_factory=list)
    reason: str = "length"
    fed: int = 0
    peak: int = 0
    total: int = 0
    nbytes: int = 0

    def take(self, token: int, stops: Sequence[int]) -> None:
        """The next token; one that ends the turn is no part of the answer."""
        if token in stops:
            self.reason = "eos"
        else:
            self.ids.append(token)

    @property
    def over(self) -> bool:
        return self.reason == "eos" or len(self.ids) >= LIMIT

    def count(self, entries: int, nbytes: int) -> None:
        """A token was fed, and this much was held."""
        self.fed, self.total = self.fed + 1, self.total + entries
        self.peak, self.nbytes = max(self.peak, entries), max(self.nbytes, nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    does = {"prepare": prepare, "answer": answer, "table": table}
    parser.add_argument("do", choices=does, help="prepare and table: in this project's environment; answer: in that of kvpress")
    parser.add_argument("work", type=Path, help="the folder that goes between them")
    parser.add_argument("--n", type=int, default=64, help="prepare: so many test problems, the first ones")
    parser.add_argument("--room", type=int, default=48, help="answer: entries beyond the prompt's number after compressing")
    parser.add_argument("--interval", type=int, default=8, help="answer: tokens between two compressions")
    parser.add_argument("--only", nargs="+", help="answer: these rows alone; full is the row without a press")
    args = parser.parse_args()
    does[args.do](args)


# ---- in the project's environment -------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """The merged model, float32, and the prompts."""
    from context_memory.loading import load

    lm = load(MODEL, TASK, dtype="float32")
    lm.base.save_pretrained(args.work / "model")
    encoder, examples = lm.encoder, problems(args.n)
    lines = [{"id": e.id, "ids": [i for s in encoder.prompt(e) for i in s.ids], "prompt": e.prompt, "target": e.target} for e in examples]
    write(args.work / "problems.jsonl", lines)
    (args.work / "stops.json").write_text(json.dumps(sorted(encoder.stops)))


def problems(n: int) -> Sequence[Any]:
    """The first test problems, in the order in which `ccm evaluate` takes them."""
    from context_memory.data.tally import Tally

    return Tally(**DATA).examples("test")[:n]  # type: ignore[arg-type]


def table(args: argparse.Namespace) -> None:
    """The rows as markdown."""
    from transformers import AutoTokenizer

    from context_memory.fetch import get

    tokenizer = AutoTokenizer.from_pretrained(get(MODEL))
    print(markdown(read(args.work / "problems.jsonl"), read(args.work / "answers.jsonl"), tokenizer.decode))
    print(json.dumps(json.loads((args.work / "settings.json").read_text())))


def markdown(given: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], decode: Callable[..., str]) -> str:
    """Scores and compares with `full` of the same run; a row without it has no comparison.

    Raises:
        UserError: the problems are not those that this code makes.
    """
    from context_memory.console import markdown_table
    from context_memory.data.tally import Tally
    from context_memory.errors import UserError
    from context_memory.metrics import Prediction, summarise, versus

    examples = {e.id: e for e in problems(len(given))}
    if any(p["target"] != examples[p["id"]].target for p in given):
        raise UserError("these problems are not those that this version makes; run prepare and answer again.")
    rows: dict[str, list[Prediction]] = {}
    for a in answers:
        e, text = examples[a["id"]], decode(a["ids"], skip_special_tokens=True)
        line = Prediction(
            e.id, e.prompt, e.target, text, Tally(**DATA).score(e, text), a["reason"], prompt_tokens=a["prompt_tokens"],  # type: ignore[arg-type]
            tokens=len(a["ids"]), peak_kv=a["peak"], mean_kv=a["total"] / max(1, a["fed"]), peak_kv_bytes=a["nbytes"],
            peak_reasoning_kv=a["peak"] - a["prompt_tokens"],
        )  # fmt: skip
        rows.setdefault(a["row"], []).append(line)
    heads = ["row", "n", "accuracy %", "vs full, points", "p", "peak beyond prompt", "peak", "mean", "MB", "tokens", "cut off %"]
    cells = []
    for name, lines in rows.items():
        m, v = summarise(lines), versus(lines, rows["full"]) if "full" in rows and name != "full" else None
        a, d = m.scores["correct"], v.difference if v else None
        cells.append([
            name, str(m.n), f"{100 * a.mean:.1f} [{100 * a.low:.1f}, {100 * a.high:.1f}]",
            f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]" if d else "",
            ("<0.001" if v.p < 0.001 else f"{v.p:.3f}") if v and v.p is not None else "",
            f"{m.peak_reasoning_kv.mean:.1f}" if m.peak_reasoning_kv else "", f"{m.peak_kv:.1f}", f"{m.mean_kv:.1f}",
            f"{m.peak_kv_bytes / 1e6:.2f}", f"{m.tokens:.0f}", f"{100 * m.cut_off:.1f}",
        ])  # fmt: skip
    return markdown_table(heads, cells)


# ---- in the environment of kvpress ------------------------------------------------------------------------------------------


def presses(prompt: int) -> dict[str, Any]:
    """The rows' scorers, for a prompt of that many tokens."""
    import kvpress

    class InOrder(kvpress.StreamingLLMPress):  # type: ignore[misc]
        """kvpress keeps the best entries in the order of their scores, and this press takes the order for their age: its equal scores
        must fall from the first to the last."""

        def score(self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> Any:
            kept = super().score(module, hidden_states, keys, values, attentions, kwargs)
            return kept * torch.linspace(2, 1, kept.shape[-1], dtype=kept.dtype, device=kept.device)

    return {
        "knorm": kvpress.KnormPress(),
        "keydiff": kvpress.KeyDiffPress(),
        "streaming": kvpress.StreamingLLMPress(n_sink=4),
        "streaming, sink = prompt": kvpress.StreamingLLMPress(n_sink=prompt),
        "streaming, sink = prompt, in order": InOrder(n_sink=prompt),
        "tova": kvpress.TOVAPress(),
        "snapkv, window 4": kvpress.SnapKVPress(window_size=4),
        "observed attention": kvpress.ObservedAttentionPress(),
    }


def side_by_side(every: Sequence[Any]) -> Any:
    """One press for a batch whose rows belong to presses in turn, equally many to each."""
    from kvpress.presses.scorer_press import ScorerPress

    class SideBySide(ScorerPress):  # type: ignore[misc]
        def score(self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any) -> Any:
            scores = []
            for press, h, k, v, a in zip(every, *(x.chunk(len(every)) for x in (hidden_states, keys, values, attentions))):
                press.compression_ratio = self.compression_ratio
                scores.append(press.score(module, h, k, v, a, kwargs))
            return torch.cat(scores)

    return SideBySide()


def live(layer: Any) -> int:
    """Bytes of a cache layer's keys and values.

    Raises:
        RuntimeError: their storage is larger than they are: what was dropped is masked, not freed.
    """
    held = sum(t.untyped_storage().nbytes() for t in (layer.keys, layer.values))
    if held != sum(t.numel() * t.element_size() for t in (layer.keys, layer.values)):
        raise RuntimeError(f"a layer of the cache has {held} bytes of storage for keys and values of {tuple(layer.keys.shape)}.")
    return held


@contextmanager
def watched(model: Any, cache: Any) -> Iterator[dict[int, tuple[int, int]]]:
    """What each layer holds as it attends: entries and bytes. Entered before a press, it sees what the press has not cut yet."""
    held: dict[int, tuple[int, int]] = {}

    def look(module: Any, *_: Any) -> None:
        layer = cache.layers[module.layer_idx]
        held[module.layer_idx] = (layer.keys.shape[2], live(layer))

    hooks = [layer.self_attn.register_forward_hook(look) for layer in model.model.layers]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def decode(model: Any, prompts: torch.Tensor, press: Any, answers: Sequence[Answer], stops: Sequence[int]) -> None:
    """Greedily; (rows, n) prompts. Positions count on, whatever is dropped, as in kvpress's own pipeline."""
    from transformers import DynamicCache

    cache, position = DynamicCache(), prompts.shape[1]
    logits = model(input_ids=prompts, past_key_values=cache, logits_to_keep=1).logits
    with watched(model, cache) as held, press(model) if press is not None else nullcontext():
        while True:
            tokens = logits[:, -1].argmax(-1)
            for a, token in zip(answers, tokens.tolist()):
                if not a.over:
                    a.take(token, stops)
            going = [a for a in answers if not a.over]
            if not going:
                return
            where = torch.full((len(answers), 1), position)
            logits = model(input_ids=tokens[:, None], past_key_values=cache, position_ids=where).logits
            position += 1
            for layer in cache.layers:
                live(layer)
            entries, size = max(n for n, _ in held.values()), sum(b for _, b in held.values()) // len(answers)
            for a in going:
                a.count(entries, size)


def answer(args: argparse.Namespace) -> None:
    """Every row's answers, a line each."""
    from kvpress import DecodingPress
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    settings = {"room": args.room, "interval": args.interval, **{p: version(p) for p in ("kvpress", "transformers", "torch")}}
    note = args.work / "settings.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        raise SystemExit(f"{note} says that the answers there were made with other settings; move answers.jsonl and it away.")
    note.write_text(json.dumps(settings))
    model = AutoModelForCausalLM.from_pretrained(args.work / "model", dtype=torch.float32, attn_implementation="eager").eval()
    stops, out = json.loads((args.work / "stops.json").read_text()), args.work / "answers.jsonl"
    done = {(a["row"], a["id"]) for a in read(out)} if out.exists() else set()
    for group in by_length(read(args.work / "problems.jsonl")):
        n = len(group[0]["ids"])
        scorers = {k: s for k, s in presses(n).items() if not args.only or k in args.only}
        for rows, press in (
            (["full"] if not args.only or "full" in args.only else [], None),
            (list(scorers), DecodingPress(side_by_side(list(scorers.values())), args.interval, n + args.room)),
        ):
            fresh = [Answer(row, p["id"], n) for row in rows for p in group]
            if not fresh or all((a.row, a.id) in done for a in fresh):
                continue
            decode(model, torch.tensor([p["ids"] for p in group] * len(rows)), press, fresh, stops)
            write(out, [asdict(a) for a in fresh if (a.row, a.id) not in done], "a")
            print(n, *rows, flush=True)


def by_length(given: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Prompts of one length together, in the order in which lengths come."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for p in given:
        groups.setdefault(len(p["ids"]), []).append(p)
    return list(groups.values())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, lines: Sequence[dict[str, Any]], mode: str = "w") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
