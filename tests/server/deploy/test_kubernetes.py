"""The manifests: valid for Kubernetes, consistent with one another, and with the command line and its defaults."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from deployment import DEPLOY, ROOT, build_manifests, parse_command, read_dockerfile, server_settings

KUBERNETES = DEPLOY / "kubernetes"
SETS = {name: build_manifests(KUBERNETES / name) for name in ("sidecar.yaml", "service", "mesh")}
# The oldest version of Kubernetes that has all fields, and the newest one whose schemas the tests have.
VERSIONS = ("1.32", "1.37")

# Kinds that other projects define, which have no schema among those of Kubernetes.
FOREIGN = ("Certificate",)


def find(name: str, kind: str) -> dict[str, Any]:
    """The only manifest of a kind in a set."""
    (manifest,) = (manifest for manifest in SETS[name] if manifest["kind"] == kind)
    return manifest


def pod_of(name: str) -> dict[str, Any]:
    return find(name, "Deployment")["spec"]["template"]["spec"]


def server_of(name: str) -> dict[str, Any]:
    """Sidelight's container."""
    pod = pod_of(name)
    (container,) = (c for c in [*pod.get("initContainers", []), *pod["containers"]] if c["name"] == "sidelight")
    return container


def argument(container: dict[str, Any], option: str) -> str | None:
    return next((text.split("=", 1)[1] for text in container["args"] if text.startswith(f"{option}=")), None)


def probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SETS)
def test_manifests_are_valid(name: str, version: str):
    validation = pytest.importorskip("kubernetes_validate", reason="pip install 'sidelight[deploy]'")
    assert version in {".".join(each.split(".")[:2]) for each in validation.utils.all_versions()}
    for manifest in SETS[name]:
        if manifest["kind"] not in FOREIGN:
            validation.validate(manifest, version, strict=True)


def test_an_unknown_field_is_found():
    validation = pytest.importorskip("kubernetes_validate", reason="pip install 'sidelight[deploy]'")
    (manifest,) = build_manifests(KUBERNETES / "sidecar.yaml")
    manifest["spec"]["template"]["spec"]["initContainers"][0]["restartPolice"] = "Always"
    with pytest.raises(validation.ValidationError):
        validation.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", SETS)
def test_the_server_takes_its_arguments(name: str, monkeypatch):
    server, pod = server_of(name), pod_of(name)
    settings = server_settings(server["args"], monkeypatch).values
    assert settings.offline  # the model is in the image
    assert int(server["resources"]["requests"]["cpu"]) == settings.threads
    # Rule of the server: beyond this machine only with TLS, or where the operator says so.
    ports = [settings.address, settings.metrics_address]
    are_local = all(port.startswith(("unix:", "127.0.0.1:")) for port in ports if port)
    assert (settings.tls_cert is not None) + settings.insecure + are_local == 1
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    assert {"/var/cache/sidelight", "/tmp"} <= {*mounts}
    for path in (settings.tls_cert, settings.tls_key, settings.tokens, settings.address.partition("unix:")[2]):
        assert not path or str(PurePosixPath(path).parent) in mounts
    assert {*mounts.values()} <= {volume["name"] for volume in pod["volumes"]}
    assert pod["enableServiceLinks"] is False  # its variables would be wrong settings


@pytest.mark.parametrize("name", SETS)
def test_a_pod_has_time_to_end(name: str, monkeypatch):
    server, pod = server_of(name), pod_of(name)
    grace = server_settings(server["args"], monkeypatch).values.grace
    pause = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert pod["terminationGracePeriodSeconds"] >= pause + grace + 5


@pytest.mark.parametrize("name", SETS)
def test_prometheus_finds_the_metrics(name: str, monkeypatch):
    server = server_of(name)
    address = server_settings(server["args"], monkeypatch).values.metrics_address
    assert {"name": "metrics", "containerPort": int(address.rpartition(":")[2])} in server["ports"]


def test_the_autoscaler_counts_what_the_server_measures():
    (metric,) = find("service", "HorizontalPodAutoscaler")["spec"]["metrics"]
    documented = re.findall(r"^\| `(\w+)`", (ROOT / "server/README.md").read_text(encoding="utf-8"), re.M)
    assert metric["pods"]["metric"]["name"] in documented


@pytest.mark.parametrize("name", SETS)
def test_probes_reach_the_server(name: str, monkeypatch):
    """The kubelet's own probes reach a port of the pod without TLS, and nothing else."""
    server = server_of(name)
    address = argument(server, "--address")
    is_plain_port = address.startswith("0.0.0.0:") and "--insecure" in server["args"]
    for probe in probes(server):
        if is_plain_port:
            assert probe["grpc"]["port"] == int(address.rpartition(":")[2])
            service = probe["grpc"].get("service", "")
        else:
            command = probe["exec"]["command"]
            assert command[:2] == ["sidelight", "health"]
            args = parse_command(command[1:], monkeypatch)
            assert args.address == address.replace("0.0.0.0", "127.0.0.1")
            assert args.timeout < probe["timeoutSeconds"]
            service = args.service
            if argument(server, "--tls-cert"):
                assert PurePosixPath(args.tls_ca).parent == PurePosixPath(argument(server, "--tls-cert")).parent
                assert args.tls_server_name in find(name, "Certificate")["spec"]["dnsNames"]
        assert service in ("", "sidelight.v1.AttributionService")
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300  # a large model loads for some minutes


@pytest.mark.parametrize("name", SETS)
def test_containers_have_no_privileges(name: str):
    pod = pod_of(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    _, instructions = read_dockerfile()
    (user,) = {i.value for i in instructions if i.name == "USER"}
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert all("subPath" not in mount for mount in container["volumeMounts"])


@pytest.mark.parametrize("name", SETS)
def test_images_are_those_of_this_version(name: str):
    bases, _ = read_dockerfile()
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    repository, _, tag = server_of(name)["image"].partition(":")
    assert repository == "sidelight"
    assert tag.removeprefix(f"{version}-") in bases


def test_the_sidecar_shares_its_socket_alone():
    pod = pod_of("sidecar.yaml")
    server, (service,) = server_of("sidecar.yaml"), pod["containers"]
    assert server["restartPolicy"] == "Always"
    assert [port["name"] for port in server["ports"]] == ["metrics"]
    (variable,) = service["env"]
    assert (variable["name"], variable["value"]) == ("SIDELIGHT_ADDRESS", argument(server, "--address"))
    shared = {m["name"] for m in service["volumeMounts"]} & {m["name"] for m in server["volumeMounts"]}
    assert shared == {"socket"}


@pytest.mark.parametrize("name", ["service", "mesh"])
def test_the_parts_of_the_service_fit_together(name: str):
    deployment, service, pod = find(name, "Deployment"), find(name, "Service"), pod_of(name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        find(name, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        find(name, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod["topologySpreadConstraints"]),
    ]
    assert all(selector == labels for selector in selectors)
    ports = {port["name"]: port["containerPort"] for port in server_of(name)["ports"]}
    (port,) = service["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"] == int(argument(server_of(name), "--address").rpartition(":")[2])
    assert service["spec"]["clusterIP"] == "None"
    is_encrypted = argument(server_of(name), "--tls-cert") is not None
    assert port["appProtocol"] == ("https" if is_encrypted else "kubernetes.io/h2c")
    for rule in find(name, "NetworkPolicy")["spec"]["ingress"]:
        assert {each["port"] for each in rule["ports"]} <= {*ports}
    autoscaler = find(name, "HorizontalPodAutoscaler")["spec"]
    assert autoscaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    secrets = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    certificates = {m["spec"]["secretName"] for m in SETS[name] if m["kind"] == "Certificate"}
    assert secrets == {"sidelight-tokens"} | certificates
    assert bool(certificates) == is_encrypted
    assert {manifest["metadata"]["namespace"] for manifest in SETS[name]} == {"sidelight"}
