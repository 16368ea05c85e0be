"""The manifests, units and cron lines are read by the programs that will read them."""

import argparse
import gzip
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines import generate
from rnnlm import cli

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"


def manifest(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster" / "kuberay" / name).read_text()))


def parsed(command: str, parser: argparse.ArgumentParser, module: str) -> argparse.Namespace:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", module]
    return parser.parse_intermixed_args(words[3:])


@pytest.mark.parametrize(
    ("name", "crd", "version"), [("train.yaml", "rayjobs", "v1"), ("generate_nightly.yaml", "raycronjobs", "v1")]
)
def test_manifests_fit_the_custom_resource_definitions(name: str, crd: str, version: str) -> None:
    path = SCHEMAS / f"ray.io_{crd}.yaml.gz"
    if not path.exists():
        pytest.skip(f"KubeRay's definitions are not beside the repository ({path.name})")
    definition = yaml.safe_load(gzip.decompress(path.read_bytes()))
    (schema,) = [
        each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == version
    ]
    value = manifest(name)
    assert value["kind"] == definition["spec"]["names"]["kind"]
    jsonschema.validate(value, _closed(schema))


def _closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as the API server's strict field validation does."""
    if isinstance(schema, dict):
        result = {key: _closed(value) for key, value in schema.items()}
        if "properties" in result and not result.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
            if "metadata" in result["properties"] and result["properties"]["metadata"] == {"type": "object"}:
                result["properties"]["metadata"] = {"type": "object"}
        return result
    return [_closed(item) for item in schema] if isinstance(schema, list) else schema


def test_entrypoints_are_commands_that_exist() -> None:
    train = manifest("train.yaml")["spec"]
    arguments = parsed(train["entrypoint"], cli.parser("run_all", None), "pipelines.run_all")
    assert (ROOT / arguments.experiment).exists()
    nightly = manifest("generate_nightly.yaml")["spec"]["jobTemplate"]
    assert parsed(nightly["entrypoint"], generate.parser(), "pipelines.generate").model.endswith("@champion")
    for spec in (train, nightly):
        variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
        assert {"RNNLM_STORE", "MLFLOW_TRACKING_URI"} <= variables.keys()


def test_every_container_has_the_token_and_no_more_rights_than_it_needs() -> None:
    specs = [manifest("train.yaml")["spec"], manifest("generate_nightly.yaml")["spec"]["jobTemplate"]]
    containers = []
    for spec in specs:
        cluster = spec["rayClusterSpec"]
        for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
            containers += group["template"]["spec"]["containers"]
    assert len(containers) == 3
    for container in containers:
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_operator_and_the_submitter_reach_the_dashboard_with_the_token() -> None:
    for spec in (manifest("train.yaml")["spec"], manifest("generate_nightly.yaml")["spec"]["jobTemplate"]):
        cluster = spec["rayClusterSpec"]
        assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"
        assert cluster["authOptions"]["mode"] == "token"
        for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
            (container,) = group["template"]["spec"]["containers"]
            (token,) = [entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN"]
            # The key is the one that the operator reads.
            wanted = {"name": cluster["authOptions"]["secretName"], "key": "auth_token"}
            assert token["valueFrom"]["secretKeyRef"] == wanted


def test_the_nightly_input_is_on_a_volume_of_the_head() -> None:
    nightly = manifest("generate_nightly.yaml")["spec"]["jobTemplate"]
    inputs = parsed(nightly["entrypoint"], generate.parser(), "pipelines.generate").input
    pod = nightly["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert inputs
    assert all(any(Path(each).is_relative_to(path) for path in mounts.values()) for each in inputs)


def test_the_cron_line_runs_a_command_that_exists() -> None:
    (line,) = [line for line in (ROOT / "infra/schedule/crontab").read_text().splitlines() if re.match(r"[\d*]", line)]
    fields = line.split(None, 5)
    for field, (low, high) in zip(fields[:5], [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)], strict=True):
        assert field == "*" or low <= int(field) <= high
    command = fields[5].partition("&&")[2].partition(">>")[0].strip()
    arguments = parsed(command.replace(".venv/bin/python", "python"), generate.parser(), "pipelines.generate")
    assert arguments.json


def test_the_systemd_unit_runs_a_command_that_exists() -> None:
    unit = (ROOT / "infra/schedule/rnnlm-generate.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    parsed(command.replace("/srv/rnnlm/.venv/bin/python", "python"), generate.parser(), "pipelines.generate")


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # when MLflow is imported
def test_the_mlflow_server_command_is_one_that_mlflow_understands(tmp_path: Path) -> None:
    fake = tmp_path / "mlflow"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    result = subprocess.run(
        [ROOT / "infra/mlflow/server.sh"],
        env={"PATH": "/usr/bin:/bin", "MLFLOW": str(fake), "MLFLOW_DATABASE": "postgresql://mlflow@127.0.0.1/mlflow",
             "MLFLOW_ARTIFACTS": "s3://bucket/mlflow"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = result.stdout.splitlines()
    from mlflow.cli import server

    context = server.make_context("server", words[1:])
    assert words[0] == "server"
    assert context.params["host"] == "127.0.0.1"
    assert context.params["backend_store_uri"].startswith("postgresql://")


@pytest.mark.parametrize("script", ["cluster/two_nodes.sh", "cluster/stop.sh", "infra/mlflow/server.sh"])
def test_scripts_are_valid_shell(script: str) -> None:
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
