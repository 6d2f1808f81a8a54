"""The seam to a language model, and the policies behind it."""

from memory_r1.policy.base import Completion, Message, Policy, Prompt, Sampling
from memory_r1.policy.cached import CachedPolicy
from memory_r1.policy.local import LocalPolicy
from memory_r1.policy.remote import RemotePolicy
from memory_r1.policy.scripted import ScriptedPolicy

__all__ = [
    "CachedPolicy",
    "Completion",
    "LocalPolicy",
    "Message",
    "Policy",
    "Prompt",
    "RemotePolicy",
    "Sampling",
    "ScriptedPolicy",
]
