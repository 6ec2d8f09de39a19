"""Snapshot ensembles: one fine-tune with a cyclic learning rate, whose stations are the members."""

from skve._ensembles.fine_tuning import FullFineTuning


class Snapshots(FullFineTuning):
    """Snapshot ensemble (arXiv 1704.00109): member m is the network at the end of cycle m of one full fine-tune.

    The `n_members` cycles share the training steps evenly; each runs through the warm-up and the schedule. Until its
    cycle ends, a member shares the tensors of the network that trains, the last member.
    """

    set_apart = "raise member_lr or max_steps: short and slow cycles end close to one another"
    takes = {}

    @classmethod
    def trained(cls, n_members):
        return range(n_members - 1, n_members)

    @classmethod
    def n_cycles(cls, n_members):
        return n_members
