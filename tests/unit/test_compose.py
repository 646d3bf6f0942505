"""docker-compose.yaml by what it says, without Docker: who is given which secret, and what is open to whom."""

import re
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]


def mounts(service):
    """What a service mounts: (source, target, whether it may write)."""
    for each in SERVICES[service].get("volumes", ()):
        if isinstance(each, str):
            source, target, *mode = each.split(":")
            yield source, PurePosixPath(target), mode != ["ro"]
        else:
            yield each["source"], PurePosixPath(each["target"]), not each.get("read_only", False)


def environment(service):
    return SERVICES[service].get("environment", {})


def default(value):
    """What stands for ``${VARIABLE:-default}`` where the variable is not set."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", value)


AIRFLOW = [name for name in SERVICES if "BQDISPATCH_FILE_ROOTS" in environment(name)]


def test_the_document_is_all_that_a_connection_can_name_as_a_file():
    assert {"scheduler", "triggerer", "worker", "api-server", "init", "gcp"} <= set(AIRFLOW)
    for service in AIRFLOW:
        root = PurePosixPath(environment(service)["BQDISPATCH_FILE_ROOTS"])
        url = default(environment(service)["BQDISPATCH_CONFIG_URL"])
        there = [target for _, target, _ in mounts(service) if target.is_relative_to(root)]
        assert there in ([], [PurePosixPath(url.removeprefix("file://"))])
        assert not any(root.is_relative_to(target) for _, target, _ in mounts(service))
