"""What Prometheus scrapes, under which names, and what the dashboards make of it."""

import json
import re
from dataclasses import replace

import grid_dashboard
import pytest
from harness.prometheus import ROOT, check_configuration, panels

from services.local.prometheus import Scraped, configuration

COMPOSE_FILE = ROOT / "infra/prometheus/prometheus.yml"
LOCAL = Scraped("http://127.0.0.1:8080", "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")


def local_jobs(scraped=LOCAL):
    return {job["job_name"]: job for job in json.loads(configuration(scraped, "127.0.0.1:4"))["scrape_configs"]}


def test_promtool_accepts_both_configurations_and_would_not_accept_any(tmp_path):
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration(LOCAL, "127.0.0.1:4"))

    assert "SUCCESS" in check_configuration(file)
    assert "SUCCESS" in check_configuration(COMPOSE_FILE)
    file.write_text(file.read_text().replace("http_sd_configs", "http_ds_configs"))
    with pytest.raises(AssertionError, match="http_ds_configs"):
        check_configuration(file)


def test_make_run_has_the_jobs_of_compose_so_that_the_dashboards_fit_both():
    assert sorted(local_jobs()) == sorted(re.findall(r"job_name: (\S+)", COMPOSE_FILE.read_text()))


def test_every_static_target_has_a_name_that_can_be_read():
    for job in local_jobs().values():
        for static in job.get("static_configs", []):
            assert static["labels"]["instance"] == job["job_name"].removesuffix("-queues")


def test_a_broker_of_ones_own_is_not_scraped():
    assert local_jobs().keys() - local_jobs(replace(LOCAL, rabbitmq=None)).keys() == {"rabbitmq", "rabbitmq-queues"}


def test_the_dashboard_is_the_one_of_its_code():
    assert grid_dashboard.FILE.read_text() == grid_dashboard.rendered(), "write it anew: make dashboards"


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit_and_names_its_series(panel):
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)
    for target in panel["targets"]:
        grouped = re.search(r"^[a-z_]+(?:\([\d.]+, sum)? by \(([^)]+)\)", target["expr"])
        for label in set(grouped.group(1).split(", ")) - {"le"} if grouped else ():
            assert f"{{{{{label}}}}}" in target["legendFormat"]


def test_panels_do_not_lie_on_each_other():
    taken = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
