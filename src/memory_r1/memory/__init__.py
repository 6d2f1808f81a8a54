"""The agents: extract facts, manage the bank, answer from it; `Memory` joins them."""

from memory_r1.memory.answer import Answer, AnswerAgent, AnswerSettings, Query
from memory_r1.memory.engine import Failure, Memory, RememberReport
from memory_r1.memory.extract import Extractor, Fact, LLMExtractor, TurnExtractor
from memory_r1.memory.manage import AddOnlyManager, Decision, LLMManager, MemoryManager

__all__ = [
    "AddOnlyManager",
    "Answer",
    "AnswerAgent",
    "AnswerSettings",
    "Decision",
    "Extractor",
    "Fact",
    "Failure",
    "LLMExtractor",
    "LLMManager",
    "Memory",
    "MemoryManager",
    "Query",
    "RememberReport",
    "TurnExtractor",
]
