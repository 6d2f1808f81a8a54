"""Several processes that train one policy, each on a GPU, or on some cores, of its own.

A launcher (accelerate, torchrun) starts the same program several times. All hold the same weights and episodes. What
takes long (sampling and scoring, forward and backward, greedy replies to val) is dealt out; what comes of it is made
known to all, and from there on all compute the same numbers, as one process would have. Gradients are summed, not
averaged: the loss holds the denominators of the whole batch. A process by itself is a world of one, in which nothing
is sent.

Left out: models that do not fit one device, and who writes files (the main process; see loop.py and train.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from memory_r1.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=3)  # for the slowest process: shares of sampling and scoring may take unequally long
_LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")


class World:
    """All processes that train one policy, as one of them sees it; here it is the only one.

    Every process must make the same calls in the same order. Where one fails, the launcher ends the others.

    rank    its number, from 0
    size    how many there are
    device  the torch device it was given; None leaves the choice to the policy
    """

    rank: int = 0
    size: int = 1
    device: str | None = None

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that fall to this process, dealt round: it may get none."""
        return items[self.rank :: self.size]

    def gather(self, results: Sequence[Result]) -> list[Result]:
        """What the processes made of their shares, one result an item, in the order the items had before `share`.

        Args:
            results: this process's; they can be pickled, and tensors among them lie on the CPU.

        Raises:
            TrainingError: another process is gone.
        """
        return list(results)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`work` done once on each item by one of the processes, the results known to all; see `gather`."""
        return self.gather([work(item) for item in self.share(items)])

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Give every weight the sum of its gradients in all processes; one without any keeps none."""

    def agree(self, what: str, mine: Callable[[], object]) -> None:
        """Raise TrainingError, naming `what`, unless `mine` gives the same in all processes."""

    def anywhere(self, mine: bool) -> bool:
        """Whether this holds in any process."""
        return mine

    def wait(self) -> None:
        """Go on when all processes have come here, so that what the main one wrote is there for all."""

    def leave(self) -> None:
        """Take leave at the end of the program."""


class Several(World):
    """One of several processes, over torch.distributed as accelerate has set it up. Made by `join`."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self.rank, self.size, self.device = state.process_index, state.num_processes, str(state.device)

    def gather(self, results: Sequence[Result]) -> list[Result]:
        shares = self._told(list(results))
        return [shares[i % self.size][i // self.size] for i in range(sum(len(share) for share in shares))]

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        import torch

        weights = list(weights)
        present = self._told([weight.grad is not None for weight in weights])
        summed = [weight for weight, found in zip(weights, zip(*present, strict=True), strict=True) if any(found)]
        with _together():
            pending = []
            for weight in summed:
                if weight.grad is None:  # this process had no part in the step
                    weight.grad = torch.zeros_like(weight)
                pending.append(torch.distributed.all_reduce(weight.grad, async_op=True))
            for work in pending:
                work.wait()

    def agree(self, what: str, mine: Callable[[], object]) -> None:
        told = self._told(mine())
        for rank, other in enumerate(told):
            if other != told[0]:
                raise TrainingError(
                    f"process {rank} of {self.size} has other {what} than the main one: start all with the same "
                    "command, on machines that are alike and share the data and the run folder"
                )

    def anywhere(self, mine: bool) -> bool:
        return any(self._told(mine))

    def wait(self) -> None:
        self._told(None)

    def leave(self) -> None:
        self._state.destroy_process_group()

    def _told(self, mine: Result) -> list[Result]:
        """What every process says, by rank."""
        from accelerate.utils import gather_object

        with _together():
            told: list[Result] = gather_object([mine])
        return told


def join() -> World:
    """The world this process was launched into: of one, where no launcher started it. Called again, the same one.

    Call it before a model is loaded: it also settles the process's GPU.

    Raises:
        TrainingError: accelerate is not installed, or the other processes cannot be reached.
    """
    if not any(name in os.environ for name in _LOCAL_RANKS):
        return World()
    try:
        import torch
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env
    except ImportError as error:
        raise TrainingError("several processes need accelerate: pip install 'memory-r1[train]'") from error
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    with _together():
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Several(state) if state.num_processes > 1 else World()


@contextmanager
def _together() -> Iterator[None]:
    """What torch says when another process is gone, in one line of ours."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"the other processes cannot be reached ({reason}): see what they say, start again"
        ) from error
