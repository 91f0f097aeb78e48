"""A cluster that starts with no CPUs and grows when it is asked for workers."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray_head import environment, free_port, head

SCRIPT = """
import os, sys, time
import ray
from surveyproc.places import Item, Stage
from surveyproc.places.cluster import session

class Slow:
    def __call__(self, number):
        time.sleep(1)
        return {"number": number, "pid": os.getpid()}

with session(sys.argv[1], workers=3) as cluster:
    assert ray.cluster_resources().get("CPU", 0) == 0
    items = [Item(str(number), number) for number in range(9)]
    done = list(cluster.stream(items, Stage("items", Slow)))
print(cluster.workers, sorted(row["number"] for row in done), len({row["pid"] for row in done}))
"""


def fake_nodes(address):
    """Ray's provider for tests: nodes of one CPU each, started on this machine, at most two."""
    lists = ["cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"]
    lists += ["setup_commands", "head_setup_commands", "worker_setup_commands"]
    lists += ["head_start_ray_commands", "worker_start_ray_commands"]
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "gcs_address": address,
        },
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


def own_ip():
    """The address by which Ray's nodes reach each other, found as Ray does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_cluster_grows_to_the_workers_asked_for_as_far_as_it_can(tmp_path, tmp_path_factory):
    port = free_port()
    address = f"{own_ip()}:{port}"
    config = tmp_path / "fake.yaml"
    config.write_text(yaml.safe_dump(fake_nodes(address)))
    options = [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    options += [f"--autoscaling-config={config}"]
    surveyproc = str(Path(__file__).parent.parent.parent)
    folder = tmp_path_factory.mktemp("r")
    with head(folder, port, *options, RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, address],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment(
                PYTHONPATH=os.pathsep.join([surveyproc, os.environ.get("PYTHONPATH", "")])
            ),
        )
    assert done.returncode == 0, done.stderr
    # Asked for three, the cluster can have two, and one may have done all before the other came.
    assert re.fullmatch(r"3 \[0, 1, 2, 3, 4, 5, 6, 7, 8\] [12]", done.stdout.strip())
