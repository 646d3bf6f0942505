"""docker-compose.yaml by what it says, without Docker: who is given which secret, and what is open to whom."""

import re
from pathlib import Path, PurePosixPath

import yaml

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]


def mounts(service):
    """List what a service mounts: (source, target, whether it may write)."""
    for each in SERVICES[service].get("volumes", ()):
        if isinstance(each, str):
            source, target, *mode = each.split(":")
            yield source, PurePosixPath(target), mode != ["ro"]
        else:
            yield each["source"], PurePosixPath(each["target"]), not each.get("read_only", False)


def environment(service):
    return SERVICES[service].get("environment", {})


def default(value):
    """Return what stands for ``${VARIABLE:-default}`` where the variable is not set."""
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


DAGS = PurePosixPath("/opt/airflow/dags")


def test_only_dags_that_work_there_are_mounted():
    """A DAG that names a project, or a set-up, waits for what no stand-in has."""
    mounted = {
        service: {source for source, target, _ in mounts(service) if target.is_relative_to(DAGS)} for service in AIRFLOW
    }
    for service in ("scheduler", "triggerer", "worker", "api-server", "dag-processor"):
        assert mounted[service] == {"./deploy/compose/bqdispatch.py", "./dags/bqdispatch_deferred.py"}
    for source in mounted["dag-processor"]:
        calls = re.findall(r"dispatch_dag\((.*)\)", (ROOT / source).read_text())
        assert len(calls) == 1 and not calls[0].startswith('"') and "only=" not in calls[0]


def test_the_guide_names_the_page():
    guide = (ROOT / "docs" / "compose.md").read_text()
    assert "http://localhost:8080/plugin/bqdispatch" in guide


CREDENTIALS = PurePosixPath("/opt/bqdispatch/credentials.json")
CALL_GOOGLE = {"scheduler", "worker", "triggerer", "init", "gcp"}
"""Tasks run in the scheduler's container or on workers; ``init`` and ``gcp`` read the configuration."""


def test_only_what_calls_google_has_its_credentials():
    mounted = {service for service in SERVICES if CREDENTIALS in {target for _, target, _ in mounts(service)}}
    told = {service for service in SERVICES if "GOOGLE_APPLICATION_CREDENTIALS" in environment(service)}
    assert (mounted, told) == (CALL_GOOGLE, CALL_GOOGLE)
    for service in CALL_GOOGLE:
        assert [writes for _, target, writes in mounts(service) if target == CREDENTIALS] == [False]


def test_what_has_no_credentials_tests_no_connection_with_them():
    settings = dict(
        line.split("=", 1)
        for line in (ROOT / "deploy/compose/gcp.env").read_text().splitlines()
        if line[:1] != "#" and line
    )
    variable = environment("api-server")["AIRFLOW__CORE__TEST_CONNECTION"]
    assert variable == "${BQDISPATCH_TEST_CONNECTION:-Enabled}"
    assert settings["BQDISPATCH_TEST_CONNECTION"] == "Disabled"
    assert environment("gcp")["AIRFLOW__CORE__TEST_CONNECTION"] == "Enabled"


def writers(volume):
    return {service for service in SERVICES for source, _, writes in mounts(service) if source == volume and writes}


def readers(volume):
    return {service for service in SERVICES for source, _, _ in mounts(service) if source == volume}


def test_secrets_are_written_by_what_makes_them_alone():
    assert (writers("setup"), writers("passwords")) == ({"secrets"}, {"secrets"})
    assert writers("logins") == {"secrets", "api-server"}  # which opens the file for writing
    assert writers("profile") == {"secrets", "celery", "fake-gcs-storage"}


def test_secrets_are_read_by_airflow_alone():
    airflow = {"init", "api-server", "scheduler", "dag-processor", "triggerer", "worker", "gcp"}
    assert readers("setup") == airflow | {"secrets"}
    assert readers("logins") == {"secrets", "api-server"}
    assert readers("passwords") == {"secrets", "postgres", "redis"}


def test_nothing_of_this_machine_is_mounted_for_writing():
    for service in SERVICES:
        assert not [source for source, _, writes in mounts(service) if writes and source.startswith((".", "/", "$"))]


def test_every_folder_of_a_volume_is_in_the_image():
    """A volume takes over whose it is, which is root's where the image has no such folder."""
    dockerfile = (ROOT / "deploy/compose/Dockerfile").read_text()
    for service in AIRFLOW:
        for source, target, _ in mounts(service):
            if source in ("logins", "passwords", "profile", "setup"):
                assert f"{target} " in dockerfile.replace("\n", " ")
