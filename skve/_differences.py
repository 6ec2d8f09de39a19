"""How the batches and sample weights of members come to differ."""

import torch


def for_members(batches, options, seeds, n_members):
    """Return training batches in which members differ as the options "order" and "bootstrap" say.

    Member m draws from its own generators; those of the first one draw the order that all share, too.
    """
    n_samples = len(batches.targets)
    if options["bootstrap"]:  # how often each sample is among as many that are drawn with replacement
        draws = [
            torch.randint(n_samples, (n_samples,), generator=seeds.generator("bootstrap", m))
            for m in range(n_members)
        ]
        counts = torch.stack([drawn.bincount(minlength=n_samples) for drawn in draws])
        batches = batches.copy(weights=batches.weights * counts)
    if options["order"] == "shared":
        return batches
    weights = batches.weights.expand(n_members, n_samples)
    return OwnOrders(
        [
            batches.copy(weights=weights[m], order=seeds.generator("order", m), augment=seeds.generator("augment", m))
            for m in range(n_members)
        ]
    )


class OwnOrders:
    """Batches of members that each have an order of their own; yields a batch for each member.

    Parameters
    ----------
    members : list of Batches
    """

    def __init__(self, members):
        self.members = members

    def __len__(self):
        return len(self.members[0])

    def __iter__(self):
        return zip(*self.members, strict=True)
