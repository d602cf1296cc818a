"""Every W of a run by its definition, without any server: what a run is compared with."""

from functools import cache

import numpy as np
from toy_fleet import DECAY, START

from distsgd.core.messages import Lease
from distsgd.core.optim import make_optimizer


class Reference:
    """Every version of W by its definition, from what went into each update."""

    def __init__(self, toy):
        self.toy, self.versions = toy, [START]
        self._optimizer = make_optimizer(toy.optimizer, START, 0.9)

    def update(self, step, examples, leases, missing=()):
        """One more update; ``missing`` are the places of leaves that have not arrived."""
        leaves = [leaf for lease in leases for leaf in self._leaves(lease)]
        for place in sorted(missing):
            leaves.insert(place, None)
        mean = add_in_pairs(leaves) * np.float32(1 / examples)
        weights = self.versions[-1].copy()
        if leases[0].replicas:
            weights -= mean
        else:
            rate, number = self.toy.schedule().at(step), len(self.versions)
            weights -= self._optimizer.change(mean + DECAY * weights, rate, number)
        self.versions.append(weights)

    def _leaves(self, lease):
        weights = self.versions[lease.version]
        if lease.replicas:
            return self.toy.answer(lease, weights).gradients
        slots = range(lease.first, lease.last)
        return [self.toy.gradient(weights, lease.step, slot) for slot in slots]


def add_in_pairs(leaves):
    """The reduction tree: neighbours are added, then the sums of neighbours, and so on."""
    while len(leaves) > 1:
        leaves = [added(*leaves[at : at + 2]) for at in range(0, len(leaves), 2)]
    return leaves[0]


def added(left, right=None):
    if left is None or right is None:
        return right if left is None else left
    return left + right


@cache
def plain_sgd(toy):
    """The last W of serial minibatch SGD, without any server."""
    reference, plan = Reference(toy), toy.plan
    for step in range(plan.total_steps):
        lease = Lease(step, 0, plan.slots(step), step)
        reference.update(step, plan.batch_examples(step), [lease])
    return reference.versions[-1]


@cache
def plain_local(toy):
    """The last W of serial rounds of local steps, without any server."""
    reference, plan, policy = Reference(toy), toy.plan, toy.policy
    step = 0
    while step < plan.total_steps:
        left = plan.steps_per_epoch - step % plan.steps_per_epoch
        steps = min(policy.local_steps, left)
        if 2 * (left - steps) < policy.local_steps:
            steps = left
        replicas = min(policy.replicas, plan.slots(step))
        leases = [
            Lease(step, replica, replica + 1, len(reference.versions) - 1, steps, replicas)
            for replica in range(replicas)
        ]
        examples = sum(map(plan.batch_examples, range(step, step + steps)))
        reference.update(step, examples, leases)
        step += steps
    return reference.versions[-1]
