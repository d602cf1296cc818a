"""The files in cluster/: as far as they can be tried without the platforms that they are for."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from support import PATIENCE, wait_for

from distsgd.cli.app import app
from distsgd.data.locations import SAMPLE

TOP = Path(__file__).parents[2]
CLUSTER = TOP / "cluster"
LAUNCHER = ("on-premises", "aws")
PLATFORMS = ("on-premises", "aws", "kubernetes", "slurm")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


def commands_in(text: str) -> list[list[str]]:
    """Command lines of distsgd in a text, without its own place."""
    text = re.sub(r"\\\n\s*", " ", text)
    found = re.findall(r'(?:^|[\s/"])(?:"\$distsgd"|distsgd|\$\{DISTSGD[^}]*\}) ([a-z].*)$', text,
                       re.MULTILINE)  # fmt: skip
    cut = (re.split(r" (?:>|&|2>|#) ?| \| ", line)[0] for line in found)
    return [shlex.split(line.replace("$(", "(")) for line in cut if "node..." not in line]


def parse(words: list[str]) -> None:
    """Have the command line read the words, and do nothing."""
    command = typer.main.get_command(app)
    name = "distsgd"
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


@pytest.mark.parametrize("platform", LAUNCHER)
def test_ray_takes_the_files_of_its_launcher(platform: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents(f"{platform}/cluster.yaml")
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == {"on-premises": 2, "aws": 4}[platform]
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "head_start_ray_command": []})


@pytest.mark.parametrize("platform", LAUNCHER)
def test_the_machines_of_the_launcher_begin_with_our_own_commands(platform: str) -> None:
    (config,) = documents(f"{platform}/cluster.yaml")
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        lines = [
            line.replace("$(hostname -I | cut -d' ' -f1)", "10.0.0.1") for line in config[part]
        ]
        words = [shlex.split(line) for line in lines]
        assert [line[0] for line in words] == ["~/distsgd-venv/bin/distsgd"] * 2
        assert [line[1:3] for line in words] == [["cluster", "stop"], ["cluster", "start"]]
        for line in words:
            parse(line[1:])
        assert "--token-file" in words[1]
    # What is packed is there, and the environments of this machine are not.
    assert config["file_mounts"]["~/distsgd"] == "."
    assert {".git", ".venv"} <= set(config["rsync_exclude"])


def test_the_head_gets_a_key_for_its_workers() -> None:
    from ray.autoscaler._private.commands import _set_up_config_for_head_node
    from ray.autoscaler._private.util import prepare_config

    (config,) = documents("on-premises/cluster.yaml")
    key = config["auth"]["ssh_private_key"]
    page = (CLUSTER / "on-premises" / "README.md").read_text(encoding="utf-8")
    assert f"ssh-keygen -t ed25519 -N '' -f {key}\n" in page and f"ssh-copy-id -i {key}.pub" in page
    provider = SimpleNamespace(prepare_for_head_node=lambda given: given)
    found, file = _set_up_config_for_head_node(prepare_config(config), provider, False)
    with file:
        there = json.loads(Path(file.name).read_text(encoding="utf-8"))
    own = there["auth"]["ssh_private_key"]
    assert found["file_mounts"][own] == key
    assert own not in there["file_mounts"], "the workers need no key"


def test_machines_of_ones_own_are_ended_by_our_own_command() -> None:
    (config,) = documents("on-premises/cluster.yaml")
    page = (CLUSTER / "on-premises" / "README.md").read_text(encoding="utf-8")
    provider = config["provider"]
    # The head first: it would have workers that have ended join again.
    machines = " ".join([provider["head_ip"], *provider["worker_ips"]])
    user, key = config["auth"]["ssh_user"], config["auth"]["ssh_private_key"]
    assert (
        f"for machine in {machines}; do\n"
        f"    ssh -i {key} {user}@$machine distsgd-venv/bin/distsgd cluster stop\ndone" in page
    )
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert not any("ray down" in block for block in blocks)


def test_an_image_for_amazon_has_to_be_chosen() -> None:
    (config,) = documents("aws/cluster.yaml")
    page = (CLUSTER / "aws" / "README.md").read_text(encoding="utf-8")
    images = {kind["node_config"]["ImageId"] for kind in config["available_node_types"].values()}
    # No image of Ray's choice, and none that AWS would take.
    assert images == {"ami-FILL-IN"} and "`ami-FILL-IN`" in page
    assert f"--region {config['provider']['region']}" in page
    assert "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/" in page
    assert f"-i ~/.ssh/ray-autoscaler_{config['provider']['region']}.pem" in page
    assert "ray get-head-ip cluster/aws/cluster.yaml" in page


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_knows_every_field(kind: str) -> None:
    known = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())["kinds"]
    (first,) = documents(f"kubernetes/{kind.lower()}.yaml")
    assert (first["apiVersion"], first["kind"]) == ("ray.io/v1", kind)
    jsonschema.Draft202012Validator(known[kind]).validate(first["spec"])
    spec = first["spec"] if kind == "RayCluster" else first["spec"]["rayClusterSpec"]
    jsonschema.Draft202012Validator(known["RayCluster"]).validate(spec)
    assert spec["authOptions"]["mode"] == "token"
    mounted: set[str] = set()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            mounted |= volumes
        assert pod["securityContext"]["runAsNonRoot"]
    if kind == "RayJob":
        words = shlex.split(first["spec"]["entrypoint"])
        assert words[:3] == ["python", "-m", "distsgd"]
        parse(words[3:])
        assert yaml.safe_load(first["spec"]["runtimeEnvYAML"])["env_vars"]["DISTSGD_RUN_NAME"]


def chosen(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a podSelector of ours chooses a pod with these labels."""
    assert set(selector) == {"matchLabels"}
    return selector["matchLabels"].items() <= labels.items()


def test_what_both_ways_to_train_on_kubernetes_need_is_in_a_file_of_its_own() -> None:
    claim, policy = documents("kubernetes/common.yaml")
    (cluster,) = documents("kubernetes/raycluster.yaml")
    (job,) = documents("kubernetes/rayjob.yaml")
    assert (claim["kind"], policy["kind"]) == ("PersistentVolumeClaim", "NetworkPolicy")
    page = (CLUSTER / "kubernetes" / "README.md").read_text(encoding="utf-8")
    applied = re.findall(r"^kubectl apply -f cluster/kubernetes/(\w+).yaml$", page, re.MULTILINE)
    assert applied == ["common", "rayjob", "raycluster"]
    rules = policy["spec"]["ingress"][0]["from"]

    def let_in(labels: dict[str, str], near: bool = True) -> bool:
        return any(
            chosen(rule["podSelector"], labels)
            for rule in rules if near or "namespaceSelector" in rule
        )  # fmt: skip

    # What KubeRay puts on every pod of every Ray cluster.
    any_ray = {"app.kubernetes.io/name": "kuberay", "ray.io/is-ray-node": "yes",
               "app.kubernetes.io/created-by": "kuberay-operator"}  # fmt: skip
    for name, spec in (("distsgd", cluster["spec"]),
                       ("distsgd-train-x7k2p", job["spec"]["rayClusterSpec"])):  # fmt: skip
        head, *workers = (spec["headGroupSpec"], *spec["workerGroupSpecs"])
        for group in (head, *workers):
            labels = {**any_ray, "ray.io/cluster": name, **group["template"]["metadata"]["labels"]}
            assert chosen(policy["spec"]["podSelector"], labels) and let_in(labels)
        claims = [volume["persistentVolumeClaim"]["claimName"]
                  for volume in head["template"]["spec"]["volumes"]
                  if "persistentVolumeClaim" in volume]  # fmt: skip
        assert claims == [claim["metadata"]["name"]]
    # The pod that hands the job over has the label of its Job, whose name is that of the RayJob.
    assert let_in({"batch.kubernetes.io/job-name": job["metadata"]["name"]})
    # KubeRay, as its Helm chart and its kustomization name it, in any namespace; nobody else.
    for name in ("kuberay-operator", "kuberay"):
        operator = {"app.kubernetes.io/name": name,
                    "app.kubernetes.io/component": "kuberay-operator"}  # fmt: skip
        assert let_in(operator, near=False)
    assert not let_in({**any_ray, "ray.io/cluster": "of-others"})
    assert not let_in({"app.kubernetes.io/part-of": "distsgd"}, near=False)


def test_the_schema_of_kuberay_finds_a_slip() -> None:
    known = json.loads((Path(__file__).parent / "kuberay_fields.json").read_text())["kinds"]
    (first, *_) = documents("kubernetes/raycluster.yaml")
    for slip in ({"authOption": {}}, {"authOptions": {"mode": "tokens"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**first["spec"], **slip}, known["RayCluster"])


def test_the_container_copies_what_is_there_and_runs_as_nobody_special() -> None:
    text = (CLUSTER / "container" / "Containerfile").read_text()
    steps = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    known = {"FROM", "RUN", "COPY", "USER", "WORKDIR", "ENV", "VOLUME", "ENTRYPOINT", "CMD"}
    steps = [step for step in steps if step]
    assert {step.split()[0] for step in steps} <= known and steps[0].startswith("FROM ")
    for step in steps:
        word, *rest = step.split()
        if word == "COPY":
            assert all((TOP / source).exists() for source in rest[:-1])
    assert any(step.split() == ["USER", "1000"] for step in steps)
    assert 'ENTRYPOINT ["distsgd"]' in steps
    assert not re.search(r"(?i)token|password|secret_", "\n".join(steps))


def test_no_file_holds_a_secret_or_ends_what_is_not_its_own() -> None:
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"AKIA[A-Z0-9]{16}|\b[0-9a-f]{64}\b", text)
            assert "ray stop" not in text and "pkill" not in text


@pytest.mark.parametrize("platform", PLATFORMS)
def test_each_platform_has_its_page_and_its_commands_can_be_read(platform: str) -> None:
    page = (CLUSTER / platform / "README.md").read_text(encoding="utf-8")
    found = [line for block in re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
             for line in commands_in(block)]  # fmt: skip
    assert found
    for words in found:
        parse(words)
    for name in re.findall(r"cluster/[\w/.-]+\.(?:yaml|sbatch|md)|cluster/\w+/Containerfile", page):
        assert (TOP / name).exists(), name


SRUN = """#!/usr/bin/env bash
# One node: what is asked for runs here, as a step that ends with what it has started.
while [[ $1 == --* ]]; do [[ $1 != --nodelist=* ]] || export SLURM_NODE=${1#*=}; shift; done
[ "$*" != "hostname -I" ] || { echo "127.0.0.1 "; exit; }
exec "$@"
"""


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a batch script on an allocation of one node; what it starts ends here."""
    tools = tmp_path / "tools"
    tools.mkdir()
    distsgd = f'#!/bin/sh\nexec "{sys.executable}" -m distsgd "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho here\n"),
                       ("distsgd", distsgd)):  # fmt: skip
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    yield {
        **kept, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "3",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here",
        "DISTSGD_HOME": str(tmp_path / "home"), "PYTHONPATH": str(TOP), "HOME": str(tmp_path),
    }  # fmt: skip
    end(f"HOME={tmp_path}")


@pytest.mark.ray
def test_the_batch_script_trains_and_leaves_nothing(
    allocation: dict[str, str], tmp_path: Path
) -> None:
    script = CLUSTER / "slurm" / "train.sbatch"
    assert script.stat().st_mode & stat.S_IXUSR
    done = subprocess.run(
        [script, "--dataset", "sample", "--workers", "2", "--epochs", "2"], env=allocation,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sha256" in done.stdout and "by team" in done.stderr
    home = tmp_path / "home"
    assert not list(tmp_path.glob(".distsgd*"))
    (run,) = (home / "runs").iterdir()
    assert json.loads((run / "report.json").read_text())["status"] == "finished"
    assert not list((home / "cluster").glob("node-*"))
    wait_for(lambda: not ours(f"HOME={tmp_path}"))


def options_of(script: Path) -> dict[str, str | None]:
    """What a batch script asks SLURM for, by its #SBATCH lines."""
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(), re.MULTILINE)
    return {name: value or None for name, value in lines}


def test_slurm_leaves_a_training_alone_when_a_node_fails() -> None:
    script = CLUSTER / "slurm" / "train.sbatch"
    asked = options_of(script)
    assert {"no-kill", "no-requeue"} <= set(asked) and asked["signal"] == "B:TERM@60"
    # Only the allocation: a step with it would not end with its node.
    (step,) = re.findall(r"exec srun .*", script.read_text())
    assert "--no-kill" not in step


STAND_IN = """#!/usr/bin/env bash
# distsgd, as far as the batch script needs it: a node that ends when told to, one that fails, and a
# training that outlives it.
note() { echo "$*" >> "$HOME/told"; }
stay() { trap 'note "$1 ended"; exit 0' TERM; while true; do sleep 0.1; done; }
case "$*" in
    "cluster start --head "*) stay head ;;
    "cluster start --join "*)
        case $SLURM_NODE in
            fails) note "fails failed"; exit 1 ;;
            hangs) trap '' TERM; exec sleep 1000 ;;
            *) stay "$SLURM_NODE" ;;
        esac ;;
    train*)
        trap 'note "training told"; exit "$CODE"' TERM
        until grep -q "fails failed" "$HOME/told" 2>/dev/null; do sleep 0.1; done
        sleep 0.5
        note "training goes on"
        [ -z "$STAYS" ] || while true; do sleep 0.1; done
        exit "$CODE" ;;
esac
"""


@pytest.fixture
def several_nodes(allocation: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Nodes without a Ray: the head, one that stays, and one that fails."""
    tools = tmp_path / "tools"
    (tools / "scontrol").write_text("#!/bin/sh\nprintf '%s\\n' head stays fails $MORE\n")
    (tools / "distsgd").write_text(STAND_IN)
    return {**allocation, "CODE": "0", "STAYS": "", "MORE": ""}


def told(tmp_path: Path) -> list[str]:
    file = tmp_path / "told"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("code", [0, 3])
def test_a_node_that_fails_ends_no_training(
    code: int, several_nodes: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [CLUSTER / "slurm" / "train.sbatch"], env={**several_nodes, "CODE": str(code)},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    first, second, *ended = told(tmp_path)
    assert (first, second) == ("fails failed", "training goes on")
    assert sorted(ended) == ["head ended", "stays ended"]
    assert not list(tmp_path.glob(".distsgd*"))


@pytest.mark.parametrize("code", [0, 143])
def test_the_exit_code_is_that_of_a_training_that_was_told_to_end(
    code: int, several_nodes: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [CLUSTER / "slurm" / "train.sbatch"],
        env={**several_nodes, "CODE": str(code), "STAYS": "yes"},
    )
    wait_for(lambda: "training goes on" in told(tmp_path) or process.poll() is not None)
    process.terminate()
    assert process.wait(timeout=PATIENCE) == code
    assert "training told" in told(tmp_path)
    assert not list(tmp_path.glob(".distsgd*"))


def test_a_node_that_does_not_answer_keeps_no_allocation(
    several_nodes: dict[str, str], tmp_path: Path
) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [CLUSTER / "slurm" / "train.sbatch"], env={**several_nodes, "MORE": "hangs"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0 and time.monotonic() - begun > 15
    assert {"head ended", "stays ended"} <= set(told(tmp_path))


def ours(mark: str) -> list[int]:
    """Processes with these words in their environment: they were begun by this test."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def end(mark: str) -> None:
    """Kill them, and what they start meanwhile."""
    while victims := ours(mark):
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


SECOND_HOME = """\
if [ "${SLURM_NODE-}" = second ]; then
    cp -r "$DISTSGD_CLUSTER_HOME" "$HOME/second" && rm "$HOME"/second/node-*
    export DISTSGD_CLUSTER_HOME="$HOME/second"
fi
"""


@pytest.mark.ray
def test_a_training_outlives_a_node_that_fails(allocation: dict[str, str], tmp_path: Path) -> None:
    """Two nodes on this machine, the second with a folder of its own for what runs there."""
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    if not addresses:
        pytest.skip("needs an address beside 127.0.0.1, where Ray takes no second node")
    tools, script = tmp_path / "tools", CLUSTER / "slurm" / "train.sbatch"
    (tools / "scontrol").write_text("#!/bin/sh\nprintf 'first\\nsecond\\n'\n")
    step = SRUN.replace("127.0.0.1", addresses[0]).replace("exec ", f"{SECOND_HOME}exec ")
    (tools / "srun").write_text(step)
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [script, "--dataset", str(SAMPLE), "--workers", "2", "--placement", "spread",
             "--epochs", "100", "--chaos", "delay:p=1:for=5ms"],  # lasts, and computes little
            env={**allocation, "SLURM_CPUS_PER_TASK": "2"}, stdout=subprocess.PIPE, stderr=errors,
            text=True,
        )  # fmt: skip
    wait_for(lambda: "worker 1 on" in (tmp_path / "errors").read_text() or process.poll())
    begun = f"DISTSGD_CLUSTER_HOME={tmp_path}/second"
    assert ours(begun)
    end(begun)
    (note,) = (tmp_path / "second").glob("node-*.json")
    shutil.rmtree(json.loads(note.read_text())["folder"])
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    assert "sha256" in output and not list(tmp_path.glob(".distsgd*"))
    (run,) = (tmp_path / "home" / "runs").iterdir()
    assert json.loads((run / "report.json").read_text())["status"] == "finished"
