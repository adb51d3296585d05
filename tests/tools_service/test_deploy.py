"""The Kubernetes manifests: valid by the API's schemas, and consistent with each other and with the service."""

from __future__ import annotations

import ast
import ipaddress
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import kubernetes_validate
import kubernetes_validate.utils
import pytest
import yaml

from tools_service.server import options as command_line

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "tools_service" / "deploy"
VERSIONS = kubernetes_validate.utils.all_versions()[-6:]  # gRPC probes are stable since 1.27
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())


def documents() -> dict[tuple[str, str], dict]:
    """Returns every object by (kind, name), including the optional ones."""
    found = {}
    for path in sorted(DEPLOY.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                found[document["kind"], document["metadata"]["name"]] = document
    return found


OBJECTS = documents()
POD = OBJECTS["StatefulSet", "tools"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
LABELS = POD["metadata"]["labels"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_by_the_strict_schema_of_the_api(version):
    for name, document in OBJECTS.items():
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            pytest.fail(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")


def test_the_validator_sees_a_misspelled_field_and_a_wrong_type():
    good = OBJECTS["PodDisruptionBudget", "tools"]
    for spec in (good["spec"] | {"maxUnavailible": 1}, good["spec"] | {"selector": "tools"}):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(good | {"spec": spec}, VERSIONS[-1], strict=True)


def test_kustomize_applies_every_file_but_the_optional_one():
    files = {path.name for path in DEPLOY.glob("*.yaml")} - {"kustomization.yaml", "search_egress.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    (image,) = KUSTOMIZATION["images"]
    assert CONTAINER["image"] == f"{image['name']}:{image['newTag']}"
    kinds = {kind for kind, _ in OBJECTS}
    assert {"StatefulSet", "Service", "NetworkPolicy", "RuntimeClass", "PodDisruptionBudget"} <= kinds


def served(folder: Path) -> command_line.ServiceOptions:
    """Parses the container's arguments into options, with a real token file in place of the secret."""
    (folder / "token").write_text("correct-horse-battery-staple")
    (mount,) = [m for m in CONTAINER["volumeMounts"] if m["name"] == "token"]
    (volume,) = [v for v in POD["spec"]["volumes"] if v["name"] == "token"]
    (item,) = volume["secret"]["items"]
    inside = f"{mount['mountPath']}/{item['path']}"
    assert f"--token-file={inside}" in CONTAINER["args"]
    known = {inside: str(folder / "token")} | {f"$({variable['name']})": "tools-0" for variable in CONTAINER["env"]}
    arguments = CONTAINER["args"]
    for written, value in known.items():
        arguments = [argument.replace(written, value) for argument in arguments]
    assert not any("$(" in argument for argument in arguments)
    return command_line.parse(arguments)


def test_the_service_accepts_its_arguments_and_listens_where_the_objects_say(tmp_path):
    """Catches: a renamed option, and a wrong port in one of the objects."""
    options = served(tmp_path)
    assert options.tokens and not options.insecure
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": options.port, "metrics": options.metrics_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["grpc"]["port"] == options.port
        assert CONTAINER[probe]["grpc"].get("service", "") in ("", "tools.v1.Tools")
    for port in OBJECTS["Service", "tools"]["spec"]["ports"]:
        assert port["targetPort"] in ports and port["port"] == ports[port["targetPort"]]
    for name, port in (("tools-clients", "grpc"), ("tools-metrics", "metrics")):
        (rule,) = OBJECTS["NetworkPolicy", name]["spec"]["ingress"]
        assert [open_["port"] for open_ in rule["ports"]] == [port] and rule["from"]


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def test_time_memory_and_disk_suffice_for_the_options_of_the_service(tmp_path):
    """Catches: a pod killed while it drains, and more sessions than its memory or disk holds."""
    options = served(tmp_path)
    assert POD["spec"]["terminationGracePeriodSeconds"] >= options.drain_s + 10
    resources = CONTAINER["resources"]
    assert resources["requests"] == resources["limits"]  # QoS class Guaranteed: evicted last
    assert _bytes(resources["limits"]["memory"]) >= options.max_sessions * (26 << 20) + 16 * (
        options.limits.memory_mb << 19
    )
    (scratch,) = [v for v in POD["spec"]["volumes"] if v["name"] == "scratch"]
    assert _bytes(scratch["emptyDir"]["sizeLimit"]) >= options.max_sessions * (options.limits.disk_mb << 20)
    assert _bytes(resources["limits"]["ephemeral-storage"]) > _bytes(scratch["emptyDir"]["sizeLimit"])
    assert options.max_running == 2 * int(resources["limits"]["cpu"])


def test_selectors_and_references_meet():
    for kind, name in (("StatefulSet", "tools"), ("PodDisruptionBudget", "tools")):
        assert OBJECTS[kind, name]["spec"]["selector"]["matchLabels"].items() <= LABELS.items()
    assert OBJECTS["Service", "tools"]["spec"]["selector"].items() <= LABELS.items()
    assert OBJECTS["Service", "tools"]["spec"]["clusterIP"] == "None"
    assert OBJECTS["StatefulSet", "tools"]["spec"]["serviceName"] == "tools"
    for name in ("tools-clients", "tools-metrics", "tools-search-egress"):
        assert OBJECTS["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"].items() <= LABELS.items()
    assert ("RuntimeClass", POD["spec"]["runtimeClassName"]) in OBJECTS
    assert ("ServiceAccount", POD["spec"]["serviceAccountName"]) in OBJECTS
    mounted, present = {m["name"] for m in CONTAINER["volumeMounts"]}, {v["name"] for v in POD["spec"]["volumes"]}
    assert mounted == present
    spaces = {
        d["metadata"].get("namespace") for (kind, _), d in OBJECTS.items() if kind not in ("Namespace", "RuntimeClass")
    }
    assert spaces == {"tools"} and ("Namespace", "tools") in OBJECTS


def test_pods_hold_no_credential_and_no_privilege():
    """Catches: a violation of the "restricted" profile of the Pod Security Standards, and a mounted cluster token."""
    assert OBJECTS["Namespace", "tools"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec, security = POD["spec"], POD["spec"]["securityContext"]
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
    assert security["seccompProfile"]["type"] == "RuntimeDefault"
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all({"emptyDir", "secret"} & volume.keys() for volume in spec["volumes"])
    own = CONTAINER["securityContext"]
    assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]} and "privileged" not in own
    assert "envFrom" not in CONTAINER  # secrets are files: an environment is inherited and visible in /proc
    assert all("fieldRef" in variable["valueFrom"] for variable in CONTAINER["env"])


def test_nothing_leaves_by_default_and_search_reaches_public_addresses_alone():
    deny = OBJECTS["NetworkPolicy", "default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    applied = [d for name in KUSTOMIZATION["resources"] for d in yaml.safe_load_all((DEPLOY / name).read_text())]
    assert not any("egress" in d["spec"] for d in applied if d["kind"] == "NetworkPolicy")
    names, web = OBJECTS["NetworkPolicy", "tools-search-egress"]["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53} and [port["port"] for port in web["ports"]] == [443]
    blocks = [peer["ipBlock"] for peer in web["to"]]

    def reachable(address: str) -> bool:
        wanted = ipaddress.ip_address(address)
        return any(
            wanted in ipaddress.ip_network(block["cidr"])
            and not any(wanted in ipaddress.ip_network(hole) for hole in block.get("except", ()))
            for block in blocks
        )

    for address in ("169.254.169.254", "10.0.0.1", "172.20.3.4", "192.168.1.1", "100.64.0.1", "127.0.0.1", "fd00:ec2::254",
                    "fe80::1", "::1"):  # fmt: skip
        assert not reachable(address), address
    assert reachable("93.184.216.34") and reachable("2606:4700::6810:84e5")


def _requirements(lines: list[str]) -> dict[str, str]:
    """Maps canonical package names to version ranges."""
    found = {}
    for line in lines:
        name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", line.split("#")[0].strip()).groups()
        found[re.sub(r"[-_.]+", "-", name).lower()] = bounds
    return found


STANDALONE = tomllib.loads((ROOT / "packaging" / "tools_service" / "pyproject.toml").read_text())["project"]
# Optional library → the extra of the standalone distribution that brings it.
_OPTIONAL = {
    "opencv-python-headless": "images",
    "pyarrow": "parquet",
    "opentelemetry-sdk": "traces",
    "opentelemetry-api": "traces",
    "opentelemetry-exporter-otlp-proto-http": "traces",
    "usearch": "vectors",
}


def test_the_standalone_distribution_has_the_version_ranges_of_the_project():
    """Catches: a range that is raised in one of the two distributions alone."""
    extras = STANDALONE["optional-dependencies"]
    installs = _requirements(
        [*STANDALONE["dependencies"], *(line for name in extras if name != "all" for line in extras[name])]
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = _requirements([*project["dependencies"], *extras["vectors"], *extras["traces"]])
    assert {name: declared.get(name) for name in installs} == installs


def test_the_standalone_distribution_installs_what_the_service_imports():
    """Catches: an import that works in the trainer's environment but not where the service is installed alone."""
    core, extras = _requirements(STANDALONE["dependencies"]), STANDALONE["optional-dependencies"]
    assert re.findall(r"\w+", extras["all"][0].partition("[")[2]) == sorted(extras.keys() - {"all"})
    owners, missing = packages_distributions(), set()
    for path in (ROOT / "tools_service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            for top in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"tools_service"}:
                names = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(top, [top])}
                extra = next((_OPTIONAL[name] for name in names if name in _OPTIONAL), "")
                if not names & core.keys() and not (
                    extra and names & (_requirements(extras[extra]).keys() | {"opentelemetry-api"})
                ):
                    missing.add(f"{top} in {path.relative_to(ROOT)}")
    assert missing == set()


def test_the_dockerfile_copies_what_is_there_and_runs_as_the_pods_user():
    text = (DEPLOY / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    security = POD["spec"]["securityContext"]
    assert re.search(r"^USER (.+)$", text, re.MULTILINE)[1] == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert 'ENTRYPOINT ["python", "-m", "tools_service"]' in text and "command" not in CONTAINER
    assert "'/build/packaging/tools_service[all]'" in text
