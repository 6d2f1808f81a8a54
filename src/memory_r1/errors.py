"""Every exception memory-r1 raises on purpose.

    MemoryR1Error
    ├── InputError             a file, record, flag or argument that cannot be used
    │   └── DialogueError      a dialogue or question against the schema; names the line and the field
    ├── BankError
    │   ├── BankFileError      not a bank, of a newer schema, or not writable
    │   ├── UnknownEntryError  no such entry in this scope
    │   ├── OperationError     an operation that no bank could apply
    │   └── ConflictError      decided on a version that is no longer the live one
    ├── PolicyError
    │   ├── ModelError         a model that is not installed, not a model, or cannot be loaded
    │   ├── EndpointError      an endpoint that is down, rejects requests, or answers nonsense
    │   ├── PromptError        this one prompt cannot be completed: too long, refused, filtered
    │   └── ReplyError         a completion that does not parse
    └── TrainingError          a run that cannot start, go on or resume

A message says which item, what was got, what was expected and what to do, in one line. The command line prints it
and exits with code 2; anything outside this tree is a bug of ours and keeps its traceback.
"""


class MemoryR1Error(Exception):
    """Base of every error raised on purpose."""


class InputError(MemoryR1Error):
    """A file, record, flag or argument cannot be used as it is."""


class DialogueError(InputError):
    """A dialogue or question does not follow the schema."""


class BankError(MemoryR1Error):
    """The bank refused; it is as it was before the call."""


class BankFileError(BankError):
    """The file is not a bank, has a newer schema, or cannot be written."""


class UnknownEntryError(BankError):
    """No entry of this id in this scope."""


class OperationError(BankError):
    """An operation that no bank could apply, such as an ADD without text."""


class ConflictError(BankError):
    """An UPDATE or DELETE was decided on a version that is no longer live: read again, decide again."""


class PolicyError(MemoryR1Error):
    """A language model could not be reached, loaded or understood."""


class ModelError(PolicyError):
    """A local model is not installed, is not a model, or cannot be loaded."""


class EndpointError(PolicyError):
    """A remote endpoint is down, refuses the request, or answers something that is not a completion."""


class PromptError(PolicyError):
    """This prompt cannot be completed (too long, refused, filtered); the policy may well complete others."""


class ReplyError(PolicyError):
    """A completion does not follow the format its prompt asked for."""


class TrainingError(MemoryR1Error):
    """A training run cannot start, go on or resume."""
