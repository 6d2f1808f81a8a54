"""Real processes in milliseconds: forks of one clean process that has the bank imported and runs no threads.

A kill is then cheap enough to be tried hundreds of times. Left out: what the processes do, which is each test's own;
their functions stand at the top level of a test file, since they reach the child by name.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Concatenate, ParamSpec

import pytest

PATIENCE_S = 60.0  # for one message of a child; a child silent for longer hangs
Arguments = ParamSpec("Arguments")

if "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("needs processes that fork, and a kill that cannot be caught", allow_module_level=True)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "hypothesis", "memory_r1.memory"])


class Child:
    """A process at work. What it sends arrives at once, and is still there after its death."""

    def __init__(self, process: BaseProcess, messages: Connection) -> None:
        self._process, self._messages = process, messages

    def hear(self) -> Any:
        """The next message; raises EOFError when the child is dead and everything was heard."""
        if not self._messages.poll(PATIENCE_S):
            self._process.kill()
            raise AssertionError(f"{self._process.name} said nothing for {PATIENCE_S:.0f} s")
        return self._messages.recv()

    def rest(self) -> list[Any]:
        """Everything it still says, up to its end."""
        heard = []
        while True:
            try:
                heard.append(self.hear())
            except EOFError:
                return heard

    def kill(self) -> list[Any]:
        """SIGKILL, which no process can catch; gives what it had said before and was not heard yet."""
        self._process.kill()
        return self.rest()

    def end(self) -> int:
        """Its exit code, the negative signal number if one killed it."""
        self._process.join(PATIENCE_S)
        code = self._process.exitcode
        assert code is not None, f"{self._process.name} did not end within {PATIENCE_S:.0f} s"
        return code

    def result(self) -> Any:
        """The last thing said by a child that must end well."""
        heard = self.rest()
        assert self.end() == 0, "the child failed; its traceback is above"
        return heard[-1] if heard else None


def start(
    work: Callable[Concatenate[Connection, Arguments], None], *args: Arguments.args, **_: Arguments.kwargs
) -> Child:
    """Run `work(say, *args)` in a process of its own; `say.send` reaches `Child.hear`."""
    messages, say = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=work, args=(say, *args), daemon=True)
    process.start()
    say.close()  # the child's copy is the last one: its end is the end of the messages
    return Child(process, messages)
