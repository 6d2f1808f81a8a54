"""The bank: entries, their history, the turns they came from, and search over them."""

from memory_r1.bank.bank import Bank
from memory_r1.bank.embed import Embedder, HashingEmbedder, MiniLMEmbedder, embedder_named
from memory_r1.bank.operation import Applied, BankStats, Entry, LoggedOperation, Operation, OperationKind, StoredTurn
from memory_r1.bank.search import Hit

__all__ = [
    "Applied",
    "Bank",
    "BankStats",
    "Embedder",
    "Entry",
    "HashingEmbedder",
    "Hit",
    "LoggedOperation",
    "MiniLMEmbedder",
    "Operation",
    "OperationKind",
    "StoredTurn",
    "embedder_named",
]
