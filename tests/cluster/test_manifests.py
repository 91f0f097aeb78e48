"""The cluster recipes against what reads them: KubeRay's schemas, Ray's own, and our promises."""

import gzip
import re
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parent.parent.parent
CLUSTER = REPOSITORY / "cluster"
SCHEMAS = REPOSITORY.parent / "shared" / "kuberay"
MANIFESTS = {"raycluster": "RayCluster", "rayjob": "RayJob", "raycronjob": "RayCronJob"}


def manifest(name):
    return yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())


def cluster_spec(name):
    spec = manifest(name)["spec"]
    spec = spec.get("jobTemplate", spec)
    return spec.get("rayClusterSpec", spec)


def strict(schema):
    """The schema with unknown keys refused, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@cache
def schema_of(kind):
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml.gz"
    if not path.is_file():
        pytest.skip("KubeRay's resource definitions (../shared/kuberay) are not on this machine")
    definition = yaml.load(gzip.decompress(path.read_bytes()), Loader=yaml.CSafeLoader)
    versions = definition["spec"]["versions"]
    stored = next(version for version in versions if version["storage"])
    return stored["name"], strict(stored["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize(("name", "kind"), MANIFESTS.items())
def test_manifests_are_what_kuberay_accepts(name, kind):
    document = manifest(name)
    version, schema = schema_of(kind)
    assert (document["kind"], document["apiVersion"]) == (kind, f"ray.io/{version}")
    # The schema says nothing of metadata, which Kubernetes itself checks.
    jsonschema.validate({**document, "metadata": {}}, schema)
    document["spec"]["shedule"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="shedule"):
        jsonschema.validate({**document, "metadata": {}}, schema)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_ray_of_kubernetes_has_tokens_autoscaling_and_both_kinds_of_workers(name):
    spec = cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    cpu, gpu = spec["workerGroupSpecs"]
    for group in (cpu, gpu):
        assert group["minReplicas"] < group["maxReplicas"]
    for group, gpus in ((cpu, None), (gpu, "1")):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    for pod in (spec["headGroupSpec"], cpu, gpu):
        inner = pod["template"]["spec"]
        assert inner["securityContext"]["runAsNonRoot"] is True
        (container,) = inner["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_a_cluster_that_stays_shows_its_dashboard_on_loopback_only():
    assert cluster_spec("raycluster")["headGroupSpec"]["rayStartParams"]["dashboard-host"] == (
        "127.0.0.1"
    )
    service = {manifest(name).get("spec", {}).get("serviceType") for name in MANIFESTS}
    assert service == {None}  # inside Kubernetes only
    policy = manifest("network-policy")["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/is-ray-node": "yes"}
    assert policy["policyTypes"] == ["Ingress"]


def test_nights_never_overlap():
    spec = manifest("raycronjob")["spec"]
    minute, hour, *rest = spec["schedule"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert rest == ["*", "*", "*"]
    assert "/" in spec["timeZone"]
    job = spec["jobTemplate"]
    # A night with a change of the clocks has 23 hours.
    assert (1 + job["backoffLimit"]) * job["activeDeadlineSeconds"] < 23 * 3600


@pytest.mark.parametrize("name", ["rayjob", "raycronjob"])
def test_jobs_run_the_entry_points_and_end_their_cluster(name):
    spec = manifest(name)["spec"]
    spec = spec.get("jobTemplate", spec)
    script = re.fullmatch(r"python /home/ray/surveyproc/(jobs/\w+\.py) \S+", spec["entrypoint"])
    assert (REPOSITORY / script[1]).is_file()
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["backoffLimit"] > 0


def test_the_aws_cluster_is_what_ray_up_accepts():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert "InstanceMarketOptions" not in types[config["head_node_type"]]["node_config"]
    for name in ("cpu", "gpu"):
        market = types[name]["node_config"]["InstanceMarketOptions"]
        assert market == {"MarketType": "spot"}
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 1
    for step in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "export RAY_AUTH_MODE=token;" in config[step][-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    ranges = [r["IpRanges"] for r in config["provider"]["security_group"]["IpPermissions"]]
    assert all(one["CidrIp"] != "0.0.0.0/0" for group in ranges for one in group)


def test_the_image_is_pinned_unprivileged_and_holds_no_secrets():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    steps = [line for line in lines if line and not line.startswith("#")]
    version = re.fullmatch(r"FROM rayproject/ray:(\d+\.\d+\.\d+)-py311", steps[0])[1]
    assert f'"ray[train,default]=={version}"' in " ".join(steps)
    assert steps[-1] == "USER 1000:100"
    assert not any("root" in step for step in steps if step.startswith("USER"))
    assert not re.search(r"(?i)token=(?!token)|secret|password|_key", "\n".join(steps).lower())
    copied = [step.split()[2:-1] for step in steps if step.startswith("COPY")]
    wanted = {name for names in copied for name in names}
    assert all((REPOSITORY / name).exists() for name in wanted)
    # Nothing else of the checkout, or of what lies in it, is sent to the builder.
    sent = (REPOSITORY / ".dockerignore").read_text().split()
    assert sent[0] == "*"
    assert {line[1:] for line in sent if line.startswith("!")} == wanted


@pytest.mark.parametrize("name", MANIFESTS)
def test_all_recipes_use_one_version_of_ray(name):
    image = (CLUSTER / "Dockerfile").read_text()
    assert f"rayproject/ray:{cluster_spec(name)['rayVersion']}-" in image
