"""The story files keep their promises: every phrasing says what is to be remembered, every answer is remembered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from memory_r1.lives.stories import Beat, Story, library, slots_in

ALWAYS = {"who", "you", "he", "his", "him", "He", "His"}
STORIES = library().stories
BEATS = [
    pytest.param(story, beat, id=f"{story.name}.{beat.name}") for story in STORIES for beat in story.beats.values()
]


def told(text: str) -> set[str]:
    """The slots of a text, a date's three forms being one."""
    return {slot.removesuffix("_on").removesuffix("_day") for slot in slots_in(text)} - ALWAYS


def before(story: Story, beat: Beat) -> Iterator[list[Beat]]:
    """The beats that come before this one, path by path."""
    for path in story.paths:
        if beat.name in path:
            yield [story.beats[name] for name in path[: path.index(beat.name)]]


def said_by(beat: Beat) -> set[str]:
    """What each of the beat's phrasings says."""
    return set.intersection(*(told(line) for line in (*beat.say.train, *beat.say.held)))


def test_there_are_fifty_stories_and_most_take_several_courses() -> None:
    assert len(STORIES) >= 50
    assert sum(len(story.paths) > 1 for story in STORIES) >= 40
    kinds = {beat.kind for story in STORIES for beat in story.beats.values()}
    assert kinds == {"ADD", "UPDATE", "DELETE", "NOOP"}


@pytest.mark.parametrize(("story", "beat"), BEATS)
def test_a_beat_can_be_said_in_five_ways_or_more_and_in_others_when_held_out(story: Story, beat: Beat) -> None:
    assert len({*beat.say.train, *beat.say.held}) >= 5
    assert len(beat.say.held) >= 1 + (beat.kind != "NOOP")
    for lines in (beat.say, beat.lead, beat.reply, *(asked.forms for asked in beat.asks)):
        assert bool(lines.train) == bool(lines.held)


@pytest.mark.parametrize(("story", "beat"), BEATS)
def test_every_phrasing_says_what_is_to_be_remembered(story: Story, beat: Beat) -> None:
    if beat.text is None:
        return
    for earlier in before(story, beat):
        known = set[str]().union(*(said_by(one) for one in earlier))
        for line in (*beat.say.train, *beat.say.held):
            assert told(beat.text) <= told(line) | known, line


@pytest.mark.parametrize(("story", "beat"), BEATS)
def test_a_dated_beat_says_its_date_and_remembers_it(story: Story, beat: Beat) -> None:
    for event in filter(None, (beat.past, beat.future, beat.years)):
        assert all(event in told(line) for line in (*beat.say.train, *beat.say.held))
        assert beat.text is None or event in told(beat.text)


@pytest.mark.parametrize(("story", "beat"), BEATS)
def test_every_answer_is_remembered_by_the_beat_that_raises_the_question(story: Story, beat: Beat) -> None:
    for asked in beat.asks:
        assert beat.text is not None
        assert told(asked.answer) <= told(beat.text), asked.answer
        assert told(asked.answer) or asked.answer in beat.text or asked.category in ("open", "now"), asked.answer


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_lasting_question_is_still_answered_after_every_later_change(story: Story) -> None:
    for path in story.paths:
        beats = [story.beats[name] for name in path]
        for number, beat in enumerate(beats):
            memory = beat.name if beat.kind == "ADD" else beat.of or path[0]
            changes = [one for one in beats[number + 1 :] if one.kind == "UPDATE" and (one.of or path[0]) == memory]
            for asked in beat.asks:
                for change in changes if asked.category not in ("now", "open") else ():
                    assert change.text is not None
                    assert told(asked.answer) <= told(change.text), f"{change.name} drops {asked.answer}"


def test_no_wording_is_both_trained_on_and_held_out() -> None:
    talk = library().talk
    lines = [
        *(lines for story in STORIES for beat in story.beats.values() for lines in (beat.say, beat.lead, beat.reply)),
        *(asked.forms for story in STORIES for beat in story.beats.values() for asked in beat.asks),
        *(forms for kinds in library().lists.values() for forms in kinds.values()),
        *talk.lines.values(),
    ]
    train = {line for one in lines for line in one.train} | {
        line for scripts in talk.scripts.values() for script in scripts["train"] for line in script
    }
    held = {line for one in lines for line in one.held} | {
        line for scripts in talk.scripts.values() for script in scripts["held-out"] for line in script
    }
    assert train.isdisjoint(held)
    assert min(len(train), len(held)) > 500
