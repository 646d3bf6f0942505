"""The dashboard, the alerts and the mapping of deploy/grafana, against real programs."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from reporting import CONNECTION, DATA, NOT_FOUND, OLDEST_S, PENDING, RUNNING, SHOP, THROTTLED, UNKNOWN

from bqdispatch_provider.core.model import Lane, Reason

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
ALERTS, RULES_TEST = GRAFANA / "alerts.yaml", Path(__file__).parent / "alerts_test.yaml"
MAPPING = yaml.safe_load((GRAFANA / "statsd_mapping.yaml").read_text())["mappings"]
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
LISTED = {
    name: (kind, [part.strip() for part in by.split(",") if part.strip()])
    for name, kind, by in re.findall(
        r"^\| `(\w+)` \| (counter|gauge|timer) \| ([\w, ]*) ?\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
}
SUFFIXES = {"counter": "_total", "gauge": "", "timer": "_seconds"}
NAMES = {f"bqdispatch_{name}{SUFFIXES[kind]}": name for name, (kind, _) in LISTED.items()}
SELECTOR = re.compile(r"\b(?:up|\w+_\w+)\{[^}]*}|\bup\b|\bbqdispatch_\w+")
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


def filled_in(text):
    """Return a query as Grafana sends it where everything is chosen."""
    for variable in ("connection", "project"):
        text = text.replace(f"${variable}", ".*")
    return text.replace("$__rate_interval", "1m")


def metrics_in(*queries):
    """Return the metrics that queries name, of a histogram the name without `_bucket`."""
    named = {selector.partition("{")[0] for query in queries for selector in SELECTOR.findall(query)}
    return {name.removesuffix("_bucket") for name in named} - {"up"}


def test_the_mapping_has_each_listed_metric_with_its_labels():
    mapped = {}
    for entry in MAPPING:
        name, *stars = entry["match"].removeprefix("*.bqdispatch.*.").split(".")
        labels = list(entry["labels"])
        assert entry["labels"] == {label: f"${number}" for number, label in enumerate(labels, 2)}
        assert (labels[0], len(labels)) == ("connection", 1 + len(stars))
        mapped[entry["name"]] = (name, labels[1:])
    assert mapped == {full: (name, LISTED[name][1]) for full, name in NAMES.items()}


def test_a_gauge_that_nobody_renews_is_forgotten_but_for_the_one_whose_age_is_the_alarm():
    gauges = {f"bqdispatch_{name}" for name, (kind, _) in LISTED.items() if kind == "gauge"}
    assert {entry["name"] for entry in MAPPING if "ttl" in entry} == gauges - {"bqdispatch_performance_written"}


def test_the_dashboard_has_every_listed_metric_and_no_other():
    assert metrics_in(*(target["expr"] for _, target in QUERIES)) == NAMES.keys()
    assert metrics_in(*(variable.get("definition", "") for variable in DASHBOARD["templating"]["list"])) <= NAMES.keys()


def test_every_panel_says_what_its_value_means_and_when_to_worry():
    assert [panel["title"] for panel in PANELS if "Worry" not in panel["description"]] == []


def test_the_dashboard_needs_no_plugin_and_no_certain_data_source():
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "connection", "project"]
    sources = [*PANELS, *(target for _, target in QUERIES), *DASHBOARD["templating"]["list"][1:]]
    assert all(each["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for each in sources)


def test_no_two_panels_lie_at_one_place():
    taken = Counter(
        (x, y)
        for where in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(where["x"], where["x"] + where["w"])
        for y in range(where["y"], where["y"] + where["h"])
    )
    assert max(taken.values()) == 1
    assert max(x for x, _ in taken) == 23
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_lanes_and_reasons_that_texts_name_are_ours():
    (waiting,) = [panel["description"] for panel in PANELS if panel["title"] == "Waiting by reason"]
    assert set(re.findall(r"\w+_\w+", waiting)) <= {str(reason).replace(" ", "_") for reason in Reason}
    assert 'eq $labels.lane "sql"' in ALERTS.read_text()


def test_every_alert_is_tested_where_it_fires_and_where_it_does_not():
    cases = [case for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in RULES}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_every_alert_has_a_severity_and_a_row_in_the_document():
    assert {rule["labels"]["severity"] for rule in RULES} == {"critical", "warning"}
    rows = re.findall(
        r"^\| `(\w+)`", (ROOT / "docs/grafana.md").read_text().partition("## The alerts")[2], re.MULTILINE
    )
    assert rows == [rule["alert"] for rule in RULES]


def test_the_rules_are_valid(promtool):
    assert f"SUCCESS: {len(RULES)} rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_when_it_is_to(promtool):
    assert "SUCCESS" in promtool("test", "rules", RULES_TEST)


def test_the_documented_configuration_is_valid(promtool, documented_config, tmp_path):
    """The prometheus.yml of docs/grafana.md."""
    (tmp_path / "alerts.yaml").write_bytes(ALERTS.read_bytes())
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(documented_config))
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")


def test_what_a_dispatcher_sends_arrives_with_its_labels(prometheus):
    """By an exporter that is started as docs/grafana.md says."""
    of = f'connection="{CONNECTION}"'
    for selector, value in {
        f'bqdispatch_running{{{of}, project="{SHOP}", lane="sql"}}': RUNNING,
        f'bqdispatch_pending{{{of}, project="{SHOP}", lane="sql"}}': PENDING,
        f'bqdispatch_throttled{{{of}, project="{SHOP}", lane="sql"}}': THROTTLED,
        f'bqdispatch_throttled{{{of}, project="{DATA}", lane="windows"}}': 0,
        f'bqdispatch_not_found{{{of}, project="{DATA}"}}': NOT_FOUND,
        f"bqdispatch_unknown{{{of}}}": UNKNOWN,
        f"bqdispatch_oldest_event{{{of}}}": OLDEST_S,
    }.items():
        assert [found for _, found in prometheus.query(selector)] == [value], selector
    reasons = {labels["reason"] for labels, _ in prometheus.query("bqdispatch_waiting")}
    assert reasons == {re.sub(r"\W", "_", str(reason)) for reason in Reason}
    assert {labels["lane"] for labels, _ in prometheus.query("bqdispatch_dispatched_total")} == set(Lane)
    ((_, p95),) = prometheus.query("histogram_quantile(0.95, sum by (le) (rate(bqdispatch_lag_seconds_bucket[1m])))")
    assert 2 <= p95 <= 5
    assert "airflow_bqdispatch" not in prometheus.exported()


def test_the_metrics_are_named_as_prometheus_wants_them(prometheus, promtool):
    ours = [line for line in prometheus.exported().splitlines(keepends=True) if "bqdispatch_" in line]
    assert len({line.split()[2] for line in ours if line.startswith("# TYPE")}) == len(LISTED)
    promtool("check", "metrics", input="".join(ours))


@pytest.mark.parametrize("what", ["dashboard", "alerts"])
def test_every_metric_that_a_query_is_about_is_there(prometheus, what):
    queries = {
        "dashboard": [filled_in(target["expr"]) for _, target in QUERIES],
        "alerts": [rule["expr"] for rule in RULES],
    }[what]
    selectors = {selector for query in queries for selector in SELECTOR.findall(query)}
    assert [selector for selector in sorted(selectors) if not prometheus.query(selector)] == []


def test_every_query_of_the_dashboard_returns_data(prometheus):
    for title, target in QUERIES:
        found = prometheus.query(filled_in(target["expr"]))
        assert isinstance(found, list) and found, (title, found)
        assert not any(math.isnan(value) for _, value in found), title
        assert {*re.findall(r"{{(\w+)}}", target["legendFormat"])} == {*found[0][0]}, title


def test_the_dashboards_variables_have_values(prometheus):
    values = {}
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
        assert variable["query"]["query"] == variable["definition"]
        values[variable["name"]] = prometheus.get(f"label/{label}/values", **{"match[]": filled_in(metric)})
    assert values == {"connection": [CONNECTION], "project": [DATA, SHOP]}


def test_every_query_of_the_alerts_is_evaluated_without_an_error(prometheus):
    for rule in RULES:
        assert isinstance(prometheus.query(rule["expr"]), list), (rule["alert"], prometheus.query(rule["expr"]))
    (group,) = prometheus.get("rules")["groups"]
    assert {rule["name"]: (rule["health"], rule.get("lastError")) for rule in group["rules"]} == {
        rule["alert"]: ("ok", None) for rule in RULES
    }
