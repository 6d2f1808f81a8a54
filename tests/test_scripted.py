import pytest

from memory_r1.errors import InputError, ReplyError
from memory_r1.policy.base import Message, Policy, Prompt, Sampling
from memory_r1.policy.scripted import ScriptedPolicy


def prompt(text: str) -> list[Message]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]


def test_replies_are_handed_out_in_order_over_several_calls() -> None:
    policy: Policy = ScriptedPolicy(["one", "two", "three"])
    first = policy.complete([prompt("a"), prompt("b")], Sampling())
    second = policy.complete([prompt("c")], Sampling())
    assert [completion.text for completion in first + second] == ["one", "two", "three"]


def test_a_function_sees_each_prompt() -> None:
    def shout(prompt: Prompt) -> str:
        return prompt[-1]["content"].upper()

    completions = ScriptedPolicy(shout).complete([prompt("a"), prompt("b")], Sampling())
    assert [completion.text for completion in completions] == ["A", "B"]


def test_tokens_are_counted_as_words() -> None:
    (completion,) = ScriptedPolicy(["in the red box"]).complete([prompt("where is it")], Sampling())
    assert (completion.prompt_tokens, completion.completion_tokens) == (5, 4)
    assert completion.finish == "stop"


def test_every_answered_prompt_is_recorded() -> None:
    policy = ScriptedPolicy(["x", "y"])
    policy.complete([prompt("a"), prompt("b")], Sampling())
    assert policy.prompts == [prompt("a"), prompt("b")]


def test_running_out_says_how_many_replies_were_given_and_hands_out_none() -> None:
    policy = ScriptedPolicy(["x", "y"])
    policy.complete([prompt("a")], Sampling())
    with pytest.raises(ReplyError, match="2 replies were given and 1 used, but 2 more asked"):
        policy.complete([prompt("b"), prompt("c")], Sampling())
    assert policy.complete([prompt("b")], Sampling())[0].text == "y"


def test_the_name_is_what_results_show() -> None:
    assert (ScriptedPolicy([]).name, ScriptedPolicy([], name="oracle").name) == ("scripted", "oracle")


def test_a_bare_string_is_not_taken_for_a_list_of_replies() -> None:
    with pytest.raises(InputError, match="wrap it in a list"):
        ScriptedPolicy("yes")
