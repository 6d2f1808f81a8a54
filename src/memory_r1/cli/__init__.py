"""The command line: one file per verb. `main` parses, runs the verb and turns expected failures into exit code 2."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from memory_r1.cli.ask import Ask
from memory_r1.cli.bank import BankVerb
from memory_r1.cli.demo import Demo
from memory_r1.cli.evaluate import Eval
from memory_r1.cli.remember import Remember
from memory_r1.cli.train import Train
from memory_r1.errors import MemoryR1Error

Verb = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Remember, tyro.conf.subcommand("remember")]
    | Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[BankVerb, tyro.conf.subcommand("bank")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
)

DESCRIPTION = """A long-term memory for LLM agents, trained by outcome-driven RL.

Exit codes: 0 done; 1 done in part (some turns failed and stay pending); 2 refused: bad input, or a model that
is down; nothing is lost or half-written.
Every verb has an example in its own help: memory-r1 ask --help"""


def parse(arguments: Sequence[str] | None = None) -> Verb:
    """The verb that these arguments (the process's own, if None) name. Unusable ones end the process with code 2."""
    verb: Verb = tyro.cli(Verb, prog="memory-r1", description=DESCRIPTION, args=arguments)
    return verb


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # a name is no reason to fail
    try:
        code = parse(arguments).run()
        return code if _printed() else 2
    except MemoryR1Error as error:
        print(f"memory-r1: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("memory-r1: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit would write the rest, and fail
        return 0


def _printed() -> bool:
    """Whether all that was printed has gone where it should."""
    try:
        if sys.stdout is not None:  # closed before the process began
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"memory-r1: done, but what it prints cannot be written: {error}", file=sys.stderr)
        return False
    return True
