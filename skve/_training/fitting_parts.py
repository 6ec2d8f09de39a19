"""Computations over members and samples, in parts that fit the memory."""

import torch

from skve._runtime.memory import is_out_of_memory, release_memory, shape_of


class FittingParts:
    """How many members and samples pass through the network together.

    A computation that does not fit the memory is tried again in smaller parts; what turns out not to fit is not
    tried again later.

    Parameters
    ----------
    ensemble : Ensemble
    chunk : int
        Members that pass through the network together, at first.

    Attributes
    ----------
    chunk, largest : int, int or None
        Members, and samples, that pass through the network together; None is the whole batch.
    """

    def __init__(self, ensemble, chunk):
        self.ensemble, self.chunk = ensemble, chunk
        self.largest: int | None = None

    def chunks(self, members):
        """Return the members in chunks."""
        return [members[start : start + self.chunk] for start in range(0, len(members), self.chunk)]

    def slices(self, n_samples):
        """Return the slices of a batch's samples."""
        largest = self.largest or n_samples
        return [slice(start, min(start + largest, n_samples)) for start in range(0, n_samples, largest)]

    def run(self, compute, group, *, undo, chunked=False, whole=False):
        """Return `compute()`, after as many attempts with smaller parts as it takes.

        Parameters
        ----------
        compute : callable
            Reads `chunks` and `slices`.
        group : Group
            The samples that it computes with, or as many of one member.
        undo : callable
            Puts back what a failed attempt has left behind.
        chunked : bool, default=False
            Whether it passes members in chunks.
        whole : bool, default=False
            Whether all samples have to pass together.
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    if self.chunk == 1 or not chunked:
                        raise
                    # What torch.vmap cannot batch fails with all kinds of messages; one member needs no vmap.
                    self.chunk = 1
                elif not self._shrink(len(group), chunked, whole):
                    raise torch.OutOfMemoryError(f"{_least(group, whole)}: {error}") from error
            undo()
            release_memory(self.ensemble.device)

    def _shrink(self, n_samples, chunked, whole):
        """Choose smaller parts for the next attempt; say whether there are any."""
        size = min(self.largest or n_samples, n_samples)
        if chunked and self.chunk > 1:
            self.chunk //= 2
        elif size > 1 and not whole:
            self.largest = (size + 1) // 2
        else:
            return False
        return True


def _least(group, whole):
    if whole:
        return f"one member and a batch of {len(group)}, whose statistics train_batch_norm=True keeps from a split"
    return f"one member and one sample of {shape_of(group.part(slice(0, 1)).inputs)}"
