"""memory-r1: a long-term memory for LLM agents whose two agents are trained by outcome-driven RL.

The public face; everything else may move. Nothing heavy is imported until a model or a vector is needed.
"""

from memory_r1.bank import Bank, Entry, HashingEmbedder, Operation
from memory_r1.dialogue import Dialogue, Question, Session, Turn, load_dialogues
from memory_r1.errors import MemoryR1Error
from memory_r1.memory import Answer, AnswerSettings, LLMExtractor, LLMManager, Memory
from memory_r1.policy import LocalPolicy, RemotePolicy, ScriptedPolicy

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AnswerSettings",
    "Bank",
    "Dialogue",
    "Entry",
    "HashingEmbedder",
    "LLMExtractor",
    "LLMManager",
    "LocalPolicy",
    "Memory",
    "MemoryR1Error",
    "Operation",
    "Question",
    "RemotePolicy",
    "ScriptedPolicy",
    "Session",
    "Turn",
    "load_dialogues",
]
