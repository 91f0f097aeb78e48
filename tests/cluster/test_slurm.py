"""The Slurm script: shellcheck, and a run in which a stub `srun` starts two nodes here."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from ray_head import RAY, environment, kill_all_of

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = REPOSITORY / "cluster" / "slurm" / "surveyproc.sbatch"

STUB = """#!/bin/sh
echo "srun $*" >> "$STUB_LOG"
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{RAY.parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the extra 'test'")
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def scratch(tmp_path_factory):
    """A folder with a name short enough for Ray's sockets; what runs in it ends with the test."""
    folder = tmp_path_factory.mktemp("r")
    yield folder
    kill_all_of(folder)


def slurm(scratch, *arguments):
    """Run the script as Slurm would on the first of two nodes; both are this machine."""
    stub = scratch / "bin" / "srun"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    own = environment()
    del own["RAY_AUTH_MODE"], own["RAY_AUTH_TOKEN"]
    own |= {
        "PATH": os.pathsep.join([str(stub.parent), own["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), own.get("PYTHONPATH", "")]),
        "STUB_LOG": str(scratch / "srun.log"),
        "TMPDIR": str(scratch),
        "SLURMD_NODENAME": "localhost",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    # A file, not a pipe: Ray's processes keep it open a little longer than the script.
    with open(scratch / "job.log", "wb") as log:
        status = subprocess.run(
            ["bash", SCRIPT, *arguments], env=own, stdout=log, stderr=log, timeout=280
        ).returncode
    return status, (scratch / "job.log").read_text()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_script_starts_a_cluster_with_a_token_and_runs_the_verb(scratch, tmp_path):
    rows = "".join(f"{i},{10 + i / 1000},-30\n" for i in range(20))
    (tmp_path / "sources.csv").write_text("object_id,ra,dec\n" + rows)
    survey = tmp_path / "survey.toml"
    survey.write_text(
        '[survey]\nname = "small"\nroot = "./store"\n[images]\nbands = ["r"]\n'
        '[catalog]\nsource = "sources.csv"\n[[products]]\nname = "photometry"\n'
    )
    status, log = slurm(scratch, survey, "ingest")
    assert status == 0, log
    assert "20 rows in, 20 in 1 partitions" in log
    head, workers = (scratch / "srun.log").read_text().splitlines()
    assert "ray start --head --block" in head
    assert "--include-dashboard=false" in head
    assert "--nodes=1 --ntasks=1 --exclude=localhost" in workers
    assert "token" not in (head + workers).lower()


def test_nothing_is_started_for_a_survey_that_is_not_there(scratch):
    status, log = slurm(scratch, "absent.toml")
    assert status == 2
    assert "absent.toml: there is no such file" in log
    assert not (scratch / "srun.log").exists()


def test_without_a_survey_it_says_how_to_call_it(scratch):
    status, log = slurm(scratch)
    assert status != 0
    assert "usage: sbatch" in log
