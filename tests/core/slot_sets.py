"""Sets of slots as the bits of whole numbers: what is leased, what has come, what is used."""

from collections import defaultdict

from toy_fleet import shares_of


class SlotSets:
    """The slots of a plan, each a bit.

    Args:
        plan: the plan.
        local_steps: steps of the plan in one update.

    Attributes:
        all: every slot.
        of_step: step -> its slots.
        of_epoch: epoch -> its slots.
    """

    def __init__(self, plan, local_steps):
        self._plan, self._local_steps = plan, local_steps
        steps = range(plan.total_steps)
        slots = [(step, slot) for step in steps for slot in range(plan.slots(step))]
        self._bits = {slot: 1 << number for number, slot in enumerate(slots)}
        self.of_step, self.of_epoch = defaultdict(int), defaultdict(int)
        for (step, _), bit in self._bits.items():
            self.of_step[step] |= bit
            self.of_epoch[plan.epoch_of(step)] |= bit
        self.all, self._of_piece = (1 << len(slots)) - 1, {}

    def listed(self, lease):
        """The (step, slot) of a lease."""
        return [(step, slot) for step, part in shares_of(self._plan, lease) for slot in part]

    def of(self, lease):
        """The slots of a lease."""
        piece = piece_of(lease)
        if piece not in self._of_piece:
            self._of_piece[piece] = sum(self._bits[slot] for slot in self.listed(lease))
        return self._of_piece[piece]

    def union(self, leases):
        """The slots of any of the leases."""
        found = 0
        for lease in leases:
            found |= self.of(lease)
        return found

    def round(self, step):
        """The slots of the minibatch, or minibatches, of the update that starts at a step."""
        end = (self._plan.epoch_of(step) + 1) * self._plan.steps_per_epoch
        last = min(step + self._local_steps, end)
        if 2 * (end - last) < self._local_steps:
            last = end
        return sum(self.of_step[number] for number in range(step, last))

    def examples(self, slots):
        """How many examples are in a set."""
        bounds = (self._plan.slot(*at) for at, bit in self._bits.items() if bit & slots)
        return sum(high - low for low, high in bounds)


def piece_of(lease):
    return lease.step, lease.first, lease.last
