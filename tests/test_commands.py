"""The commands on a tiny model: what they write and say, and that a slip of a person ends in one message and exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import toys
from context_memory import cli, plugins, records, rows
from context_memory.batches import BLOCK
from context_memory.compose import load
from context_memory.encode import Encoder
from context_memory.errors import UserError
from context_memory.rows import configure
from context_memory.train import Result

Ccm = Callable[..., tuple[int, str, str]]
SMALL = ("model.dtype=float32", "boundary=every", "boundary.n=9", "evaluation.max_samples=3", "generation.max_new_tokens=24")


@pytest.fixture
def ccm(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ccm:
    """Run `ccm` in an empty folder: exit code, what it printed, what it complained about."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    return run


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.folder(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="module")
def adapters(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.adapters(tmp_path_factory.mktemp("adapters"), toy, **{"boundary": "every", "boundary.n": 9, "data.max_steps": 4})


# ---- train --------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_trained_and_what_was_dropped(ccm: Ccm, toy: Path, tmp_path: Path) -> None:
    row = {"reasoning_with_compression": "1 + 1 = 2\n<COMP>So 2.\n#### 2", "answer": "2"}
    rows = [row | {"question": f"{i}: 1 + 1?", "answer": "3" if i % 4 == 0 else "2"} for i in range(80)]
    Path("my.json").write_text(json.dumps(rows))
    small = ("model.dtype=float32", "model.lora_r=2", "training.max_steps=7", "training.batch_size=4", "training.eval_samples=0")
    code, out, err = ccm("train", f"model={toy}", "data=gsm8k", "data.path=my.json", *small, "--dry-run", "--no_wandb")
    assert code == 0, err
    dropped = plugins.make("data", "gsm8k", path="my.json").dropped("train")  # type: ignore[attr-defined]
    assert dropped > 5 and f"; {dropped} rows with a wrong final answer dropped" in out
    said = {line.split()[0]: line for line in out.splitlines()}
    assert list(said) == ["run", "model", "parameters", "data", "steps", "time", "memory"]
    assert "7 updates" in said["steps"] and "scheme concat n_comp=2" in said["model"]
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(("data", "warned"), [("personal", True), ("tally", False)])
def test_a_training_ends_with_what_binds(data: str, warned: bool, ccm: Ccm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No adapter need be there yet: of several processes one alone writes it."""
    monkeypatch.setattr("context_memory.train.train", lambda _: Result(tmp_path, tmp_path / "a", 1, True))
    code, out, err = ccm("train", f"data={data}")
    assert code == 0, err
    assert ("the adapter is for non-commercial use" in out) is warned and "finished after 1 steps" in out


def test_a_dry_run_encodes_a_sample(ccm: Ccm, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of updates is reckoned from the first block; all the rows are alike, so that it is right."""
    Path("many.jsonl").write_text("".join(json.dumps({"question": f"{i:04}?", "answer": "1 + 1 = 2\n#### 2"}) + "\n" for i in range(900)))
    seen: list[str] = []
    encode = Encoder.segments
    monkeypatch.setattr(Encoder, "segments", lambda self, example, *a, **k: seen.append(example.id) or encode(self, example, *a, **k))
    small = ("model.dtype=float32", "model.lora_r=2", "training.batch_size=4", "training.eval_samples=0", "--no_wandb")
    code, out, err = ccm("train", f"model={toy}", "data=gsm8k", "data.path=many.jsonl", *small, "--dry-run")
    assert code == 0, err
    n = int(out.split("data ")[1].split()[0].replace(",", ""))
    assert n > BLOCK and len(set(seen)) <= BLOCK and f"(reckoned from a sample of {BLOCK} examples)" in out
    assert abs(int(out.split("steps ")[1].split()[0].replace(",", "")) - n / 4) <= 2


# ---- evaluate and compare ---------------------------------------------------------------------------------------------------


def test_a_sweep_has_a_row_for_every_combination(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    common = (f"model={toy}", "evaluation.max_samples=2", "generation.max_new_tokens=12", "evaluation.likelihood=false", "--run_id", "s")
    axes = ("--sweep", "boundary.n=4,9", "--sweep", "pins=[prompt],[prompt,sink]")
    code, out, err = ccm("evaluate", "--adapter", adapters[1], *common, *axes)
    assert code == 0, err
    rows = {r.name: r for r in records.gather([tmp_path / "result" / "tally" / "s" / "evaluation"])}
    swept = [f"boundary.n={n} pins={p}" for n in (4, 9) for p in ("prompt", "prompt+sink")]
    assert list(rows) == ["full", *swept, "nothing"]
    said = [(rows[n].settings["boundary"]["n"], [p["name"] for p in rows[n].settings["pins"]]) for n in swept]
    assert said == [(n, p) for n in (4, 9) for p in (["prompt"], ["prompt", "sink"])]
    assert swept[0] in out
    refused = {
        "boundary=rules": "needs several values",
        "rules": "is not key=value",
        "boundary=rules,x": "called 'x'",
        "data.max_steps=3,4": "differ in model, scheme, boundary, pins and share all else",
    }
    for axis, message in refused.items():
        code, _, err = ccm("evaluate", "--adapter", adapters[1], *common, "--sweep", axis)
        assert (code, message in err) == (2, True), err


def test_a_row_that_cannot_be_made_costs_no_other(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    common = (
        f"model={toy}",
        "evaluation.max_samples=2",
        "generation.max_new_tokens=12",
        "evaluation.likelihood=false",
        "--alone",
        "--out",
        "some",
    )
    code, out, err = ccm("evaluate", "--adapter", adapters[1], *common, "--sweep", "boundary.n=250,4")
    assert code == 2 and "row 'boundary.n=250': " in err and "the other rows are done" in err
    assert [r.name for r in records.gather([tmp_path / "some"])] == ["boundary.n=4"] and "boundary.n=4" in out
    assert (tmp_path / "some" / "table.json").is_file()


def test_a_sweep_leaves_out_what_a_policy_lacks() -> None:
    named = [name for name, _ in rows.sweep(["boundary=newline,every", "boundary.n=4,9"], [], None, None)]
    assert named == ["boundary=newline", "boundary=every boundary.n=4", "boundary=every boundary.n=9"]
    with pytest.raises(UserError, match=r"--sweep boundary\.tau: no plug-in of the sweep has this setting"):
        rows.sweep(["boundary=newline,every", "boundary.tau=0.3,0.6"], [], None, None)


def test_likelihoods_have_a_picture(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    common = (f"model={toy}", "evaluation.max_samples=2", "evaluation.generate=false", "--alone", "--out", "likely")
    code, _, err = ccm("evaluate", "--adapter", adapters[1], *common, "--sweep", "boundary.n=4,9")
    assert code == 0, err
    assert (tmp_path / "likely" / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_chosen_again_keeps_the_settings_of_the_card() -> None:
    """A sweep over plug-ins compares them as the adapter was trained, `n_comp` and budgets included, not with the defaults."""
    shipped = Path(__file__).parents[1] / "adapters" / "smollm2-135m-instruct-gsm-symbolic-concat"
    card = json.loads((shipped / "ccm.json").read_text())["config"]
    usual = load(["pins=[prompt,results,sink]"])
    assert card["scheme"] != usual.scheme and card["pins"]["results"] != usual.pins["results"]

    again = configure(["scheme=concat", "boundary=newline", "pins=[prompt,results,sink]"], adapter=shipped)
    younger = {"window": 0, "cache": 0, "lag": 0}  # than the card
    assert (again.scheme, again.boundary) == (card["scheme"] | younger, card["boundary"])
    assert again.pins == card["pins"] | {"sink": usual.pins["sink"]}

    others = configure(["scheme=merge", "boundary=sentence", "pins=[sink]"], adapter=shipped)
    plain = load(["scheme=merge", "boundary=sentence", "pins=[sink]"])
    assert (others.scheme, others.boundary, others.pins) == (plain.scheme, plain.boundary, plain.pins)


def test_schemes_without_comp_tokens_leave_the_adapter_aside(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    """They run the model that the adapter was trained on; a scheme without a mask has no likelihood, and its cell stays empty."""
    few = (f"model={toy}", "model.dtype=float32", "evaluation.max_samples=2", "generation.max_new_tokens=24", "--alone")
    code, _, err = ccm("evaluate", "--adapter", adapters[1], *few, "--sweep", "scheme=concat,window,key_norm", "--out", "all")
    assert code == 0, err
    rows = {r.settings["scheme"]["name"]: r for r in records.gather([tmp_path / "all"])}
    assert len({r.settings["task"] for r in rows.values()} - {None}) == 1
    assert [rows[n].settings["adapter"] is None for n in ("concat", "window", "key_norm")] == [False, True, True]
    assert [rows[n].lines[0].nll is None for n in ("concat", "window", "key_norm")] == [False, False, True]
    assert all(r.lines[0].compressions for r in rows.values()) and "was trained with" not in err
    code, _, err = ccm("evaluate", "--adapter", adapters[1], *few, "scheme=merge", "--out", "other")
    assert code == 0 and f"adapter '{adapters[1]}' was trained with scheme=concat and runs with merge." in err

    code, _, err = ccm("evaluate", f"model.adapter={adapters[0]}", *few, "scheme=window", "boundary=every", "boundary.n=8", "--out", "task")
    assert code == 0, err
    code, _, err = ccm("evaluate", *few, "scheme=key_norm", "data=tally", "evaluation.generate=false", "--out", "none")
    assert code == 2 and "'key_norm' chooses by the keys and has no likelihood" in err
    sized = ("data=tally", "boundary=every", "boundary.n=8", "--out", "large")
    code, _, err = ccm("evaluate", *few, "scheme=key_norm", "scheme.size=4000", *sized)
    assert code == 2 and "hides no token of any of the 2 targets" in err
    code, _, err = ccm("train", *few[:2], "scheme=key_norm", "data=tally")
    assert code == 2 and "'key_norm' trains nothing" in err
    code, _, err = ccm("show", "scheme=key_norm", "ab|c|d")
    assert code == 2 and "'key_norm' has no mask to draw" in err


def test_evaluate_and_compare(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    """The rows full and nothing run the task-adapted model; the adapter brings its scheme, boundary and data along."""
    task, concat = adapters
    common = (f"model={toy}", "model.dtype=float32", "evaluation.max_samples=3", "generation.max_new_tokens=24")
    code, out, err = ccm("evaluate", "--adapter", concat, *common, "--run_id", "mine")
    assert code == 0, err
    folder = tmp_path / "result" / "tally" / "mine" / "evaluation"
    rows = {r.name: r for r in records.gather([folder])}
    assert list(rows) == ["full", "concat", "nothing"]
    assert {r.settings["task"] for r in rows.values()} == {rows["full"].settings["task"]} != {None}
    assert rows["concat"].settings["adapter"] and rows["full"].settings["adapter"] is None
    assert rows["concat"].settings["boundary"]["n"] == 9
    assert rows["full"].run["data"]["max_steps"] == 4
    assert rows["full"].lines[0].answer != rows["concat"].lines[0].answer
    assert rows["concat"].lines[0].compressions and not rows["full"].lines[0].compressions
    notes = json.loads((folder / "concat" / "metrics.json").read_text())
    assert notes["versus_full"]["kv_ratio"] > 0 and notes["run"]["command"] and notes["run"]["split"] == "test"
    assert "accuracy %" in out and (folder / "plot.png").exists()

    again = (folder / "concat" / "predictions.jsonl").stat().st_mtime_ns
    code, _, err = ccm("evaluate", f"model.adapter={concat}", f"model={toy}", "generation.max_new_tokens=30", "--run_id", "mine")
    assert code == 2 and "holds an evaluation with d" in err and "another run_id" in err
    assert (folder / "concat" / "predictions.jsonl").stat().st_mtime_ns == again

    code, _, err = ccm("evaluate", f"model.adapter={task}", f"model={toy}", *SMALL, "--run_id", "plain", "--alone")
    assert code == 0, err
    code, out, err = ccm("compare", "result/tally/mine", "result/tally/plain", "--out", "both")
    assert code == 0, err
    assert "mine: " not in out and (tmp_path / "both" / "table.md").exists()  # the same row twice is one

    code, _, err = ccm("evaluate", "--adapter", concat, *common, "--run_id", "mine", "--alone", "--row", f"other={concat}")
    assert code == 0, err
    assert (folder / "other" / "metrics.json").exists()


def test_a_recipe_stands_for_what_it_trains(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    """Before: nothing else does. After: what it trained, another scheme, other data."""
    model = f"{{name: {toy}, adapter: {adapters[0]}, dtype: float32, lora_r: 2}}"
    scheme = "scheme: {name: concat, n_comp: 1}\nboundary: {name: every, n: 9}"
    rest = "data: {name: tally, max_steps: 4, train: 40}\ntraining: {max_steps: 1, eval_samples: 0}\nrun_id: mine"
    (tmp_path / "mine.yaml").write_text(f"model: {model}\n{scheme}\n{rest}\n")
    common = ("--recipe", "mine.yaml", "evaluation.generate=false", *SMALL)
    code, _, err = ccm("evaluate", *common)
    assert code == 2 and "recipe 'mine.yaml' has left no adapter at 'result/tally/mine/adapter'; train it first" in err, err
    code, _, err = ccm("train", "--recipe", "mine.yaml", "--no_wandb")
    assert code == 0, err
    code, _, err = ccm("evaluate", *common, "--alone")
    assert code == 0, err
    code, _, err = ccm("evaluate", *common, "--alone", "scheme=window", "scheme.size=12")
    assert code == 0, err
    rows = {r.name: r.settings for r in records.gather([tmp_path / "result" / "tally" / "mine" / "evaluation"])}
    assert set(rows) == {"concat", "window"} and rows["concat"]["adapter"] and rows["concat"]["task"] == rows["window"]["task"]
    assert rows["concat"]["task"]
    line = json.dumps({"question": "How many?", "answer": "1 + 1 = 2, so 2 in all.\n#### 2"}) + "\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test.jsonl").write_text(line * 3)
    code, _, err = ccm("evaluate", *common, "--alone", "data=gsm8k", "data.path=mine", "--out", "other")
    assert code == 0 and records.gather([tmp_path / "other"])[0].settings["adapter"] == rows["concat"]["adapter"], err
    for named in (("--recipe", "mine.yaml"), (f"model={toy}", "data=tally", "run_id=mine")):
        code, _, err = ccm("generate", "How many?", *named, "generation.max_new_tokens=12")
        assert (code, "[concat: " in err) == (0, True), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scheme=concat"], "scheme 'concat' needs a compression adapter and no adapter was given"),
        (["scheme=concat", "model.adapter={task}"], "is a task adapter"),
        (["scheme=nosuch"], "no scheme called 'nosuch'; have: capped, compressive, concat"),
        (["model.adapter=nowhere"], "no adapter folder at 'nowhere'"),
        (["evaluation.max_sample=3"], "Did you mean 'max_samples'?"),
        (["scheme=full", "evaluation.max_samples=0"], "evaluation.max_samples must be at least 1, got 0"),
        (
            ["scheme=nothing", "boundary=newline", "boundary.max_segment=256"],
            "answers was compressed, although scheme 'nothing' forgets",
        ),
        (["scheme=full", "--recipe", "none.yaml"], "no recipe at 'none.yaml'"),
    ],
)
def test_evaluate_refuses(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], arguments: list[str], message: str) -> None:
    given = [a.format(task=adapters[0]) for a in arguments]
    chosen = {g.partition(".")[0].partition("=")[0] for g in given if g.startswith("boundary")}
    first = [s for s in SMALL if s.partition(".")[0].partition("=")[0] not in chosen]
    code, _, err = ccm("evaluate", f"model={toy}", *first, *given)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_compare_refuses(ccm: Ccm) -> None:
    code, _, err = ccm("compare", "result/none")
    assert code == 2
    assert "'result/none' is not there; give a folder that ccm evaluate wrote" in err


# ---- generate, show, models -------------------------------------------------------------------------------------------------


def test_generate(ccm: Ccm, toy: Path, adapters: tuple[Path, Path]) -> None:
    common = (f"model={toy}", "model.dtype=float32", "generation.max_new_tokens=30")
    code, out, err = ccm("generate", "How many?", *common, "--adapter", adapters[1])
    assert code == 0, err
    assert out.strip() and "concat: 30 tokens, ended by length; 3 compressions; at most " in err.replace(", at", "; at")
    assert "nothing was compressed" not in err
    code, _, err = ccm("generate", "How many?", *common, "--adapter", adapters[1], "boundary=turn")
    assert code == 0 and "nothing was compressed: boundary=turn ended no segment before the answer did." in err
    code, plain, err = ccm("generate", "How many?", *common)
    assert code == 0 and "full: " in err and plain != out
    code, _, err = ccm("generate", " ", *common)
    assert code == 2 and "the question is empty" in err


def test_show_letters(ccm: Ccm) -> None:
    code, out, _ = ccm("show", "scheme=concat", "scheme.n_comp=1", "ab|c|d")
    assert code == 0
    assert "d . . 1 . 1 1" in out and "2 segments compressed" in out
    code, out, _ = ccm("show", "scheme=full", "ab|c")
    assert code == 0 and "nothing is hidden" in out


def test_show_words(ccm: Ccm, toy: Path, tmp_path: Path) -> None:
    code, out, err = ccm("show", "scheme=concat", f"model={toy}", "a = 1\\nbb\\nc", "--prompt", "So?", "--save", "m.png")
    assert code == 0, err
    rows = out.split("a row sees")[0].splitlines()
    head = len("<") * 0 + 1 + len("So?") + 2  # role, question, end of turn, role
    assert rows[0] == "#" and rows[head + 5] == "#" * (head + 6)
    closed = next(r for r in rows if r.startswith("P"))
    assert closed == "P" * head + "." * 6 + "CC#"
    assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scheme=concat"], "no text to draw"),
        (["scheme=concat", "scheme.n_comp=0", "ab|c"], "n_comp must be at least 1"),
        (["scheme=concat", "scheme.n_com=1", "ab|c"], "Did you mean 'n_comp'?"),
        (["model=no-such-model", "two words"], "no model called 'no-such-model'"),
    ],
)
def test_show_refuses(ccm: Ccm, arguments: list[str], message: str) -> None:
    code, _, err = ccm("show", *arguments)
    assert code == 2
    assert message in err


def test_models(ccm: Ccm, models_folder: Path) -> None:
    code, out, _ = ccm("models")
    assert code == 0
    assert "smollm2-135m-instruct" in out and "23,040" in out and "llama-3.1-8b-instruct" in out
    code, _, err = ccm("models", "pull", "smollm2-135m")
    assert code == 2
    assert "did you mean 'smollm2-135m-instruct'?" in err


# ---- quickstart -------------------------------------------------------------------------------------------------------------


def test_quickstart(ccm: Ccm, toy: Path, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    """The whole story in its smallest form, and again: nothing is done twice."""
    small = (f"model={toy}", "model.dtype=float32", "boundary=every", "boundary.n=9", "data.max_steps=4")
    arguments = ("quickstart", "--smoke", "--task", adapters[0], "--shipped", adapters[1], *small, "generation.max_new_tokens=24")
    code, out, err = ccm(*arguments)
    assert code == 0, err
    folder = tmp_path / "result" / "quickstart-smoke"
    assert all(word in out for word in ("full", "just trained (2 steps)", "shipped", "window ", "nothing"))
    assert (folder / "plot.png").is_file() and (folder / "tally" / "trained" / "adapter" / "ccm.json").is_file()
    assert "1/3" in err and "What to try next" in err and "GB of memory" in err
    rows = {r.name: r for r in records.gather([folder])}
    assert len({tuple(p.key for p in r.lines) for r in rows.values()}) == 1 and len(rows["full"].lines) == 4
    assert rows["shipped"].settings["adapter"] != rows["just trained (2 steps)"].settings["adapter"]
    before = (folder / "evaluation" / "full" / "predictions.jsonl").read_bytes()
    code, _, err = ccm(*arguments)
    assert code == 0, err
    assert (folder / "evaluation" / "full" / "predictions.jsonl").read_bytes() == before


def test_quickstart_says_what_is_missing(ccm: Ccm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from context_memory import quickstart

    monkeypatch.setattr(quickstart, "TASK", "adapters/none")
    code, _, err = ccm("quickstart")
    assert code == 2
    assert "'adapters/none' is missing: it comes with the repository." in err and "ccm train --recipe" in err
    (tmp_path / "empty").mkdir()
    code, _, err = ccm("quickstart", "--task", "empty", "--shipped", "empty")
    assert code == 2 and "no adapter in 'empty'" in err


def test_versions(ccm: Ccm) -> None:
    """What a report of a fault should say."""
    code, out, _ = ccm("--version")
    assert code == 0 and f"torch {metadata.version('torch')}" in out and out.startswith("context-memory ")
