"""The dialogue file: what is written comes back, and what is wrong is refused with its line and field."""

from __future__ import annotations

import json
import tempfile
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.dialogue import Dialogue, GoldOperation, Question, Session, Turn, load_dialogues, save_dialogues
from memory_r1.errors import DialogueError, InputError

MONDAY = datetime(2023, 5, 8, 13, 56)
TURN = {"speaker": "Ann", "text": "hello", "turn": "t1"}
QUESTION = {"question": "Who?", "answer": "Ann", "id": "q1"}


def written(tmp_path: Path, *records: object) -> Path:
    """A file of these lines; what is no string is written as JSON."""
    path = tmp_path / "mine.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """What is said about a file that cannot be used, always in one line that begins with its path."""
    with pytest.raises(DialogueError) as caught:
        load_dialogues(path)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(str(path))
    return said.removeprefix(str(path))


# What is written comes back


def test_dialogues_and_questions_come_back_as_they_were_written(tmp_path: Path) -> None:
    first = Session(
        "s1", MONDAY, (Turn("t1", "Ann", 'she said "no"\nand left', MONDAY), Turn("t2", "Bob", "👋", MONDAY))
    )
    second = Session("s2", None, (Turn("t3", "Ann", "שלום \u202eעולם", None),))
    dialogues = (Dialogue("d1", (first, second)), Dialogue("d2", (Session("s1", None, (Turn("t4", "Eve", "x"),)),)))
    questions = (
        Question("q1", "d1", "Who left?", "she", "single-hop", ("t1", "t3"), datetime(2024, 1, 2, 3, 4)),
        Question("q2", "d2", "What?", "x"),
    )
    save_dialogues(tmp_path / "out.jsonl", dialogues, questions)
    file = load_dialogues(tmp_path / "out.jsonl")
    assert (file.dialogues, file.questions) == (dialogues, questions)


def test_a_time_with_seconds_comes_back_whole_and_one_without_is_written_to_the_minute(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for at, as_text in ((MONDAY, "2023-05-08T13:56"), (MONDAY.replace(second=7, microsecond=9), "13:56:07.000009")):
        save_dialogues(path, [Dialogue("d", (Session("s", at, (Turn("t", "Ann", "x", at),)),))])
        assert load_dialogues(path).dialogues[0].sessions[0].at == at
        assert f'{as_text}"' in path.read_text(encoding="utf-8")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
TIMES = st.none() | st.datetimes()


@st.composite
def dialogue(draw: st.DrawFn) -> Dialogue:
    """A dialogue of up to three sessions in which every turn has its own id."""
    sessions, number = [], 0
    for session_id in draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True)):
        at, turns = draw(TIMES), []
        for speaker, text in draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)):
            number += 1
            turns.append(Turn(f"{number}{draw(TEXTS)}", speaker, text, at))
        sessions.append(Session(session_id, at, tuple(turns)))
    return Dialogue(draw(TEXTS), tuple(sessions))


@settings(max_examples=100, deadline=None)
@given(said=dialogue(), text=TEXTS, answer=TEXTS, category=TEXTS, asked_at=TIMES)
def test_any_valid_text_comes_back(
    said: Dialogue, text: str, answer: str, category: str, asked_at: datetime | None
) -> None:
    evidence = tuple(turn.id for turn in said.turns)
    question = Question("q", said.id, text, answer, category, evidence, asked_at)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.jsonl"
        save_dialogues(path, [said], [question])
        file = load_dialogues(path)
    assert file.dialogues == (said,)
    assert file.questions == (question,)


def test_a_text_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path, TURN)
    before = path.read_bytes()
    half_an_emoji = Dialogue("d", (Session("s", None, (Turn("t", "Ann", "\ud83d"),)),))
    with pytest.raises(UnicodeEncodeError):
        save_dialogues(path, [half_an_emoji])
    assert path.read_bytes() == before


def test_a_text_of_a_million_characters_and_one_with_nul_are_kept_whole(tmp_path: Path) -> None:
    long, nul = "ab c" * 250_000, "a\x00b"
    path = written(tmp_path, {**TURN, "text": long}, {**TURN, "turn": "t2", "text": nul})
    assert [turn.text for turn in load_dialogues(path).dialogues[0].turns] == [long, nul]


# What may be left out


def test_a_turn_needs_only_its_speaker_and_its_text(tmp_path: Path) -> None:
    file = load_dialogues(written(tmp_path, {"speaker": "Ann", "text": "hi"}, {"speaker": "Bob", "text": "ho"}))
    turns = (Turn("mine/session-1/1", "Ann", "hi"), Turn("mine/session-1/2", "Bob", "ho"))
    assert file.dialogues == (Dialogue("mine", (Session("session-1", None, turns),)),)


def test_a_question_needs_only_its_text_and_its_answer(tmp_path: Path) -> None:
    file = load_dialogues(written(tmp_path, TURN, {"question": "Who?", "answer": "Ann"}))
    assert file.questions == (Question("mine/q1", "mine", "Who?", "Ann", "all", (), None),)


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(TURN).encode() + b"\r\n\r\n  \r\n")
    assert load_dialogues(path).dialogues[0].turns == (Turn("t1", "Ann", "hello"),)


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, TURN, "", "", "{")).startswith(", line 4: not JSON")


def test_a_line_separator_within_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({**TURN, "text": "a\u2028b\x85c"}, ensure_ascii=False))
    assert load_dialogues(path).dialogues[0].turns[0].text == "a\u2028b\x85c"


def test_a_session_says_its_time_once_for_all_its_turns(tmp_path: Path) -> None:
    path = written(tmp_path, {**TURN, "at": "2023-05-08T13:56"}, {**TURN, "turn": "t2"})
    assert [turn.at for turn in load_dialogues(path).dialogues[0].turns] == [MONDAY, MONDAY]


def test_the_zone_of_a_time_is_left_out_and_the_wall_clock_kept(tmp_path: Path) -> None:
    path = written(tmp_path, {**TURN, "at": "2023-05-08T13:56+02:00"})
    assert load_dialogues(path).dialogues[0].turns[0].at == MONDAY


def test_sessions_and_dialogues_keep_the_order_in_which_the_file_first_names_them(tmp_path: Path) -> None:
    places = [("b", "2"), ("a", "1"), ("b", "1"), ("b", "2")]
    records = [{"dialogue": d, "session": s, "speaker": "Ann", "text": "x"} for d, s in places]
    file = load_dialogues(written(tmp_path, *records))
    assert [(d.id, [(s.id, len(s.turns)) for s in d.sessions]) for d in file.dialogues] == [
        ("b", [("2", 2), ("1", 1)]),
        ("a", [("1", 1)]),
    ]


def test_numbers_stand_for_their_digits(tmp_path: Path) -> None:
    file = load_dialogues(written(tmp_path, {**TURN, "turn": 7, "text": 42}, {**QUESTION, "answer": 0}))
    assert file.dialogues[0].turns == (Turn("7", "Ann", "42"),)
    assert file.questions[0].answer == "0"


def test_fields_nobody_knows_are_passed_over(tmp_path: Path) -> None:
    assert load_dialogues(written(tmp_path, {**TURN, "mood": "fine"})).dialogues[0].turns[0].text == "hello"


# What is refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'speaker': 'Ann'}", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ('{"speaker": "Ann", "text": "x"', "not JSON"),
        ("9" * 5000, "JSON that cannot be read (Exceeds the limit"),
        ("[" * 100_000, "JSON that cannot be read (maximum recursion depth"),
        ("[1]", "got list, expected a JSON object"),
        ("null", "got NoneType, expected a JSON object"),
        ('"hello"', "got str, expected a JSON object"),
        ({"text": "x"}, "field 'speaker' is missing"),
        ({"speaker": None, "text": "x"}, "field 'speaker' is missing"),
        ({"speaker": "Ann"}, "field 'text' is missing"),
        ({"speaker": "Ann", "text": ""}, "field 'text' is '', expected a non-empty string"),
        ({"speaker": "Ann", "text": " \n\t"}, r"field 'text' is ' \n\t', expected a non-empty string"),
        ({"speaker": "Ann", "text": ["x"]}, "field 'text' is ['x'], expected a non-empty string"),
        ({"speaker": "Ann", "text": True}, "field 'text' is True, expected a non-empty string"),
        ({"speaker": {}, "text": "x"}, "field 'speaker' is {}, expected a non-empty string"),
        ({**TURN, "turn": " "}, "field 'turn' is ' ', expected a non-empty string"),
        ({**TURN, "text": "half \ud83d"}, "field 'text' has a lone surrogate, expected valid Unicode"),
        ({**TURN, "at": "yesterday"}, "field 'at' is 'yesterday', expected an ISO time such as 2025-03-02T19:10"),
        ({**TURN, "at": "2023-02-30"}, "field 'at' is '2023-02-30', expected an ISO time"),
        ({**TURN, "at": 1683554160}, "field 'at' is '1683554160', expected an ISO time"),
        ({**TURN, "at": ["2023"]}, "field 'at' is ['2023'], expected a non-empty string"),
        ({"question": "Who?"}, "field 'answer' is missing"),
        ({"question": "", "answer": "x"}, "field 'question' is '', expected a non-empty string"),
        ({**QUESTION, "evidence": "t1"}, "field 'evidence' is 't1', expected a list of strings"),
        ({**QUESTION, "evidence": [1]}, "field 'evidence' is [1], expected a list of strings"),
        ({**QUESTION, "evidence": ["t9"]}, "field 'evidence' names 't9', which is no turn of this file"),
        ({**QUESTION, "dialogue": "d9"}, "field 'dialogue' is 'd9', which has no turns here"),
        ({**QUESTION, "asked_at": "now"}, "field 'asked_at' is 'now', expected an ISO time"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_its_field(tmp_path: Path, line: object, said: str) -> None:
    path = written(tmp_path, {**TURN, "turn": "t0"}, line)
    assert refusal(path).startswith(f", line 2: {said}")


def test_a_long_value_is_cut_in_the_refusal(tmp_path: Path) -> None:
    assert len(refusal(written(tmp_path, {**TURN, "text": ["x" * 100_000]}))) < 150


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl") == ": no such file, expected a JSONL file of turns and questions"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(": cannot be read as UTF-8 text: [Errno 21] Is a directory")


def test_a_path_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(DialogueError, match="cannot be read as UTF-8 text: embedded null byte"):
        load_dialogues("a\0b")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"speaker": "Zoë", "text": "x"}'.encode("latin-1"))
    assert refusal(path).startswith(": cannot be read as UTF-8 text: 'utf-8' codec can't decode byte 0xeb")


@pytest.mark.parametrize("lines", [[], ["", " "], [QUESTION]])
def test_a_file_without_turns_is_refused(tmp_path: Path, lines: list[object]) -> None:
    assert refusal(written(tmp_path, *lines)) == ": holds no turns, expected at least one"


def test_a_turn_id_used_twice_names_both_lines_even_across_dialogues(tmp_path: Path) -> None:
    path = written(tmp_path, TURN, {**TURN, "turn": "t2"}, {**TURN, "dialogue": "other"})
    assert refusal(path) == f", line 3: turn id 't1' was used at {path}, line 1: give each turn its own"


def test_a_question_id_used_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, TURN, QUESTION, QUESTION)
    assert refusal(path) == ", line 3: question id 'q1' appears twice, expected unique ids"


@pytest.mark.parametrize("first", [{"at": "2023-05-08T13:56"}, {}])
def test_two_times_for_one_session_are_refused(tmp_path: Path, first: dict[str, str]) -> None:
    path = written(tmp_path, {**TURN, **first}, {**TURN, "turn": "t2", "at": "2023-05-09T10:00"})
    began = MONDAY if first else None
    assert refusal(path) == f", line 2: field 'at' is 2023-05-09 10:00:00, but session 'session-1' began at {began}"


def test_a_dialogue_made_by_hand_needs_turns_with_their_own_ids() -> None:
    twice = Session("s", None, (Turn("t", "Ann", "x"), Turn("t", "Bob", "y")))
    with pytest.raises(DialogueError, match="dialogue 'd': turn id 't' appears twice"):
        Dialogue("d", (twice,))
    with pytest.raises(DialogueError, match="dialogue 'd' has no turns"):
        Dialogue("d", (Session("s", None, ()),))


# Gold operations

DOG = "Ann has a dog, Buddy."
DOGS = "Ann has two dogs, Buddy and Max."


def test_gold_operations_come_back_and_none_is_not_the_same_as_unknown(tmp_path: Path) -> None:
    said = (
        (GoldOperation("ADD", DOG),),
        (),
        None,
        (GoldOperation("UPDATE", DOGS, DOG),),
        (GoldOperation("DELETE", old=DOGS),),
    )
    turns = tuple(Turn(f"t{number}", "Ann", "x", None, gold) for number, gold in enumerate(said))
    save_dialogues(tmp_path / "out.jsonl", [Dialogue("d", (Session("s", None, turns),))])
    assert load_dialogues(tmp_path / "out.jsonl").dialogues[0].turns == turns


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        ("ADD", ": field 'operations' is 'ADD', expected a list of objects"),
        (["ADD"], ": field 'operations' is ['ADD'], expected a list of objects"),
        ([{"op": "NOOP"}], ", operation 1: field 'op' is 'NOOP', expected ADD, UPDATE or DELETE; [] keeps nothing"),
        ([{"op": "ADD", "text": DOG}, {"text": DOG}], ", operation 2: field 'op' is missing"),
        ([{"op": "ADD"}], ", operation 1: field 'text' is missing"),
        ([{"op": "UPDATE", "text": DOGS}], ", operation 1: field 'old' is missing"),
        (
            [{"op": "DELETE", "old": DOG}],
            f": the DELETE replaces {DOG!r}, expected a text that an earlier operation of the dialogue wrote and none "
            "replaced",
        ),
    ],
)
def test_operations_that_cannot_be_are_refused(tmp_path: Path, operations: object, expected: str) -> None:
    assert refusal(written(tmp_path, TURN, {**TURN, "turn": "t2", "operations": operations})) == f", line 2{expected}"


def test_a_text_that_was_replaced_cannot_be_replaced_again(tmp_path: Path) -> None:
    golds = [{"op": "ADD", "text": DOG}], [{"op": "UPDATE", "text": DOGS, "old": DOG}], [{"op": "DELETE", "old": DOG}]
    lines = [{**TURN, "turn": f"t{number}", "operations": gold} for number, gold in enumerate(golds)]
    assert refusal(written(tmp_path, *lines)).startswith(f", line 3: the DELETE replaces {DOG!r}")
    assert load_dialogues(written(tmp_path, *lines[:2])).dialogues[0].turns[1].operations is not None


# Finding dialogues and questions in it


def test_questions_are_found_by_dialogue_in_file_order(tmp_path: Path) -> None:
    records = [{"dialogue": d, "speaker": "Ann", "text": "x"} for d in ("d1", "d2")]
    asked = [{"dialogue": d, "question": f"{n}?", "answer": "x"} for n, d in enumerate(("d2", "d1", "d2"))]
    file = load_dialogues(written(tmp_path, *records, *asked))
    assert [question.text for question in file.questions_of(["d2"])] == ["0?", "2?"]
    assert [question.text for question in file.questions_of(["d1", "d2"])] == ["0?", "1?", "2?"]


def test_an_unknown_dialogue_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    file = load_dialogues(written(tmp_path, TURN, {**TURN, "turn": "t2", "dialogue": "d2"}))
    with pytest.raises(InputError, match="unknown dialogue 'd9', the file has: mine, d2"):
        file.dialogue("d9")
    with pytest.raises(InputError, match="unknown dialogue 'd9'"):
        file.questions_of(["d2", "d9"])


def test_speakers_come_in_order_of_first_appearance() -> None:
    turns = tuple(Turn(str(n), speaker, "x") for n, speaker in enumerate(("Bob", "Ann", "Bob")))
    assert Dialogue("d", (Session("s", None, turns),)).speakers == ("Bob", "Ann")
