"""The dashboard and the alerts in server/deploy: each metric in them is one that a real server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import request, stub
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[3] / "server" / "deploy"
RULES, DASHBOARD = DEPLOY / "prometheus-rules.yaml", DEPLOY / "grafana-dashboard.json"

# What Prometheus adds to each sample.
_TARGET_LABELS = {"job", "instance"}

# A name that is no function, and its matchers.
_SELECTOR = re.compile(r"(?<![\w:])([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^)]*)\)")
_WORDS = {"and", "or", "unless", "bool"}


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def expressions() -> dict[str, str]:
    """All expressions, by the names of their alerts or panels. The dashboard's variables have values."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            found[f"{panel['title']} {target['refId']}"] = re.sub(r"\$(job|instance|model)", ".*", text)
    return found


def selectors(expression: str) -> list[tuple[str, str]]:
    """The names of metrics in an expression, each with its matchers."""
    text = re.sub(r"\[\w+\]", " ", _GROUPING.sub(" ", expression))
    return [(name, matchers) for name, matchers in _SELECTOR.findall(text) if name not in _WORDS]


@pytest.fixture(scope="module")
def samples(observed) -> Mapping[str, list[dict[str, str]]]:
    """The labels of all samples of a real server, by the names of the samples."""
    with stub(observed.address) as service:
        list(service.Attribute(request("A dog.")))
    found: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for family in text_string_to_metric_families(observed.read_metrics()):
        for sample in family.samples:
            found[sample.name].append(sample.labels)
    return found


def matches(labels: Mapping[str, str], matchers: str) -> bool:
    """Whether each value that the matchers name is one of the labels' values."""
    for name, operator, value in _MATCHER.findall(matchers):
        if name in _TARGET_LABELS:
            continue
        is_equal = re.fullmatch(value, labels[name]) if "~" in operator else labels[name] == value
        if bool(is_equal) is operator.startswith("!"):
            return False
    return True


@pytest.mark.parametrize("name", expressions())
def test_a_real_server_has_each_metric_and_label(name, samples):
    expression = expressions()[name]
    found = selectors(expression)
    assert found
    for metric, matchers in found:
        if metric == "up":  # which Prometheus makes
            continue
        if metric == "sidelight_device_memory_bytes":  # only a model on a GPU has a sample
            continue
        assert metric in samples, metric
        assert any(matches(labels, matchers) for labels in samples[metric]), (metric, matchers)
        for labels in _GROUPING.findall(expression):
            for label in map(str.strip, labels.split(",")):
                assert label in _TARGET_LABELS or all(label in each for each in samples[metric]), (metric, label)
    for pattern in re.findall(r'grpc_code=~?"([^"]*)"', expression):
        codes = {labels["grpc_code"] for labels in samples["grpc_server_handled_total"]}
        assert set(pattern.split("|")) <= codes


def test_the_names_are_read_out_of_expressions():
    text = 'histogram_quantile(0.9, sum by (le, model) (rate(a_bucket{model="x"}[5m]))) > 2 and on (job) b:c == 3 * d'
    assert selectors(text) == [("a_bucket", 'model="x"'), ("b:c", ""), ("d", "")]


def test_the_device_has_its_metric_in_the_exposition(observed):
    assert "# TYPE sidelight_device_memory_bytes gauge" in observed.read_metrics()


def test_annotations_use_labels_that_their_alerts_have():
    for rule in alerts():
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        kept = {label.strip() for labels in _GROUPING.findall(rule["expr"]) for label in labels.split(",")}
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert used <= (kept or {"instance", "model"} if "sidelight_" in rule["expr"] else kept or {"instance"})


def test_the_panels_of_the_dashboard_lie_side_by_side():
    board = dashboard()
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(board["panels"])))
    assert used <= variables | {"__rate_interval"}
    assert used >= {"datasource", "job", "instance", "model"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_below, (one, other)


def test_the_dashboard_shows_each_metric_of_sidelight(samples):
    shown = {metric for text in expressions().values() for metric, _ in selectors(text)}
    own = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples if name.startswith(("sidelight", "grpc"))}
    assert own <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


# ---- Prometheus' own tool -------------------------------------------------------------------------------------------


def run_promtool(*arguments: str, stdin: str = "") -> str:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus, on Debian in the package prometheus")
    completed = subprocess.run([promtool, *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout + completed.stderr


def test_promtool_finds_no_fault_in_the_metrics(observed):
    assert run_promtool("check", "metrics", stdin=observed.read_metrics()) == ""


def test_promtool_reads_the_alerts_and_all_expressions(tmp_path):
    assert f"{len(alerts())} rules found" in run_promtool("check", "rules", str(RULES))
    records = [{"record": f"panel:{index}", "expr": text} for index, text in enumerate(expressions().values())]
    path = tmp_path / "expressions.json"
    path.write_text(json.dumps({"groups": [{"name": "all", "rules": records}]}), encoding="utf-8")
    assert f"{len(records)} rules found" in run_promtool("check", "rules", str(path))


_HANDLED = 'grpc_server_handled_total{job="sidelight",instance="a",grpc_method="Attribute",grpc_code="%s"}'
_STARTED = 'grpc_server_started_total{job="sidelight",instance="a",grpc_method="Attribute"}'
_MODEL = '{job="sidelight",instance="a",model="m"}'


def _buckets(name: str, fast: str, slow: str, bound: str) -> dict[str, str]:
    """A histogram whose observations lie up to a bound, or between this bound and the next."""
    labels = _MODEL[:-1]
    return {
        f'{name}_bucket{labels},le="{bound}"}}': fast,
        f'{name}_bucket{labels},le="{float(bound) * 2}"}}': slow,
        f'{name}_bucket{labels},le="+Inf"}}': slow,
    }


# Of each alert: samples of a server for which it fires after 20 minutes, and of a server for which it does not.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "SidelightDown": (
        {'up{job="sidelight",instance="a"}': "1 0x60"},
        {'up{job="sidelight",instance="a"}': "1x60"},
    ),
    "SidelightRestarts": (
        {'process_start_time_seconds{job="sidelight",instance="a"}': "0+1x60"},
        {'process_start_time_seconds{job="sidelight",instance="a"}': "0x30 5x30"},
    ),
    "SidelightInternalErrors": (
        {_HANDLED % "Internal": "0x38 1x22", _HANDLED % "OK": "0+1x60"},
        {_HANDLED % "Internal": "1x60", _HANDLED % "InvalidArgument": "0+1x60"},
    ),
    "SidelightRequestsRefused": (
        {_HANDLED % "ResourceExhausted": "0+1x60", _STARTED: "0+10x60"},
        {_HANDLED % "ResourceExhausted": "0+1x60", _STARTED: "0+100x60"},
    ),
    "SidelightCallsUnauthenticated": (
        {_HANDLED % "Unauthenticated": "0+60x60"},
        {_HANDLED % "Unauthenticated": "0+6x60"},
    ),
    "SidelightQueueLong": (
        {"sidelight_requests_waiting" + _MODEL: "100x60", "sidelight_slots" + _MODEL: "32x60"},
        {"sidelight_requests_waiting" + _MODEL: "60x60", "sidelight_slots" + _MODEL: "32x60"},
    ),
    "SidelightStuck": (
        {"sidelight_requests_waiting" + _MODEL: "1x60", "sidelight_steps_total" + _MODEL: "7x60"},
        {"sidelight_requests_waiting" + _MODEL: "1x60", "sidelight_steps_total" + _MODEL: "0+9x60"},
    ),
    "SidelightFirstStepSlow": (
        _buckets("sidelight_time_to_first_step_seconds", "0+1x60", "0+10x60", "2.5"),
        _buckets("sidelight_time_to_first_step_seconds", "0+99x60", "0+100x60", "1.0"),
    ),
    "SidelightStepsSlow": (
        _buckets("sidelight_step_seconds", "0+1x60", "0+10x60", "0.512"),
        _buckets("sidelight_step_seconds", "0+99x60", "0+100x60", "0.256"),
    ),
    "SidelightReadersStall": (
        {"sidelight_reader_stalls_total" + _MODEL: "0+5x60", "sidelight_queue_seconds_count" + _MODEL: "0+10x60"},
        {"sidelight_reader_stalls_total" + _MODEL: "0+1x60", "sidelight_queue_seconds_count" + _MODEL: "0+10x60"},
    ),
    "SidelightFilesShort": (
        {
            'process_open_fds{job="sidelight",instance="a"}': "900x60",
            'process_max_fds{job="sidelight",instance="a"}': "1024x60",
        },
        {
            'process_open_fds{job="sidelight",instance="a"}': "90x60",
            'process_max_fds{job="sidelight",instance="a"}': "1024x60",
        },
    ),
}


def test_each_alert_fires_for_its_fault_alone(tmp_path):
    assert CASES.keys() == {rule["alert"] for rule in alerts()}
    tests = []
    for alert, (faulty, sound) in CASES.items():
        for series, count in ((faulty, 1), (sound, 0)):
            tests.append(
                {
                    "name": f"{alert} {'fires' if count else 'is silent'}",
                    "interval": "30s",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                            "eval_time": "20m",
                            "exp_samples": [{"labels": "{}", "value": count}],
                        }
                    ],
                }
            )
    path = tmp_path / "tests.json"
    document = {"rule_files": [str(RULES)], "evaluation_interval": "30s", "tests": tests}
    path.write_text(json.dumps(document), encoding="utf-8")
    assert "SUCCESS" in run_promtool("test", "rules", str(path))
