"""A server of one weight, for sums that can be done in the head."""

import numpy as np
from toy_fleet import granted

from distsgd.core.messages import Push
from distsgd.core.model import SlotLoss
from distsgd.core.optim import Schedule, make_optimizer
from distsgd.core.reduction_tree import cover, sum_node
from distsgd.core.server import ParameterServer


def constant_push(plan, lease, value, dtype="float64"):
    """Every example of the lease has the gradient ``value`` and the loss 1."""
    slots = plan.slots(lease.step)
    counts = [high - low for low, high in (plan.slot(lease.step, slot) for slot in range(slots))]
    gradients = np.array([np.full(1, value * count, dtype) for count in counts])
    nodes = cover(lease.first, lease.last, slots)
    sums = np.array([sum_node(node, gradients, 0, slots) for node in nodes])
    own = counts[lease.first : lease.last]
    return Push(lease, tuple(SlotLoss(float(count), 1, count) for count in own), sums)


def plain_server(plan, learning_rate=0.5, decay=0.0, weight=0.0):
    weights = np.array([weight])
    return ParameterServer(
        weights, decay=np.array([decay]), optimizer=make_optimizer("sgd", weights, 0.0),
        schedule=Schedule(name="constant", learning_rate=learning_rate, total=plan.total_steps),
        plan=plan,
    )  # fmt: skip


def run_one_step(server, plan, workers, value):
    for worker in range(workers):
        server.joined(worker)
    leases = {}
    for worker in range(workers):
        leases.update(granted(server.pull(worker)))
    pushes = [(worker, constant_push(plan, lease, value)) for worker, lease in leases.items()]
    return [server.push(worker, push) for worker, push in pushes][-1][0]
