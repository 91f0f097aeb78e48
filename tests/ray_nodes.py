"""A cluster of several nodes on this machine, whose plugs can be pulled."""

import contextlib
import random

import psutil
from ray.cluster_utils import Cluster

NODES = 3
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}


class Nodes:
    """A head without CPUs and nodes of one CPU each; `system` are settings of Ray's core.

    Workers take the variables that this process has now.
    """

    def __init__(self, **system):
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH | system}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.alive = {}
        self.fill()

    @property
    def address(self):
        return self.cluster.address

    def fill(self, count=NODES):
        """Add nodes until there are so many."""
        while len(self.alive) < count:
            node = self.cluster.add_node(num_cpus=1)
            self.alive[node.node_id] = node

    def kill(self, name):
        """What a pulled plug does: all processes of the node are gone at once."""
        raylet = _raylet(self.alive.pop(name))
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_head(self):
        """Kill the process that all others of the cluster report to."""
        self.cluster.head_node.kill_gcs_server()

    def kill_worker(self, rng: random.Random):
        """Kill a process of ours on one of the nodes; False if there is none."""
        found = [
            process
            for node in self.alive.values()
            for process in _raylet(node).children(recursive=True)
            if is_worker(process)
        ]
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(found).kill()
        return bool(found)

    def end(self):
        """Stop all that is left."""
        self.cluster.shutdown()


def is_worker(process):
    """Whether a process computes units, cubes or partitions."""
    try:
        return " ".join(process.cmdline()).startswith(("ray::_do", "ray::Reader", "ray::Network"))
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def _raylet(node):
    return psutil.Process(node.all_processes["raylet"][0].process.pid)
