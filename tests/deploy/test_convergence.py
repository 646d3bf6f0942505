"""Whoever deploys, and whatever was there: the first time brings it about, the second time changes nothing.

`pytest tests/deploy/test_convergence.py --deployments deploy/composer/README.md` writes the table.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from clouds import DOCUMENT, README
from marks import write
from terraform import Terraform

CHANGED = {
    "roles": "roles",
    "bindings": "bindings",
    "repositories": "repositories",
    "files": "wheel",
    "pip.conf": "pip.conf",
    "packages": "package",
    "variables": "variables",
    "pools": "pools",
    "DAG": "DAG",
}


MEANS = ("the command", "Terraform and the command")


def edited(name, change):
    def edit(cloud):
        part = getattr(cloud, name)
        change(part)
        cloud.set(**{name: part})

    return edit


def no_index(cloud):
    cloud.set_pip_conf("[global]\n")


def another_index(cloud):
    cloud.set_pip_conf("[global]\nindex-url = https://pypi.acme.example/simple/\n")


def swap_priorities(repositories):
    policies = repositories["bqdispatch-index"]["virtualRepositoryConfig"]["upstreamPolicies"]
    policies[0]["priority"], policies[1]["priority"] = policies[1]["priority"], policies[0]["priority"]


def edit_connection(variables):
    extra = {"config_url": "gs://acme-config/elsewhere.json"}
    variables["AIRFLOW_CONN_BQDISPATCH_DEFAULT"] = json.dumps({"conn_type": "bqdispatch", "extra": extra})


DAG = "gs://europe-west1-ops-1234-bucket/dags/bqdispatch.py"
ROLE = "projects/acme-ops/roles/bqdispatchFolders"
BY_HAND = {
    "a role's permissions were changed": edited(
        "roles", lambda roles: roles[ROLE].update(includedPermissions=["a.b.c"])
    ),
    "a binding was removed": edited("bindings", lambda bindings: bindings.pop(0)),
    "the index was taken out of pip.conf": no_index,
    "pip.conf names another index": another_index,
    "the index's priorities were changed": edited("repositories", swap_priorities),
    "another version of the package was set": edited(
        "packages", lambda packages: packages.update({"airflow-provider-bqdispatch": "==0.0.9"})
    ),
    "a limit's variable was changed": edited("variables", lambda known: known.update(BQDISPATCH_SQL_SLOTS="5")),
    "the connection was taken out": edited("variables", lambda known: known.pop("AIRFLOW_CONN_BQDISPATCH_DEFAULT")),
    "the connection was edited": edited("variables", edit_connection),
    "the DAG file was edited": edited("objects", lambda objects: objects[DAG].update(text="dag = None")),
    "a pool's slots were changed": edited("pools", lambda pools: pools["bqdispatch_sql"].update(slots=5)),
    "a pool was told to count no deferred tasks": edited(
        "pools", lambda pools: pools["bqdispatch_jobs"].update(include_deferred=False)
    ),
}


def widen(bindings):
    (condition,) = [condition for place, _, _, condition in bindings if place == "gs://acme-ops"]
    condition["expression"] = "true"


MOVED = {key: DOCUMENT[key].replace("gs://acme-ops/", "gs://acme-two/") for key in ("AsyncTaskURL", "JournalURL")}
OF_RIGHTS = {
    "the document was overwritten by one that names another bucket": (False, lambda cloud: cloud.document(**MOVED)),
    "by prefix, another document names another bucket": (
        True,
        lambda cloud: cloud.replace_document(DOCUMENT | MOVED, "moved.json"),
    ),
    "by prefix, a condition was widened": (True, edited("bindings", widen)),
}
"""Changes by name: if the account is limited by prefix, and what gives the document's URL if that is another one."""


def parts(cloud):
    """Return what a deployment changes, by part; who wrote an object how often does not matter."""
    state = cloud.state()
    texts = {url.rpartition("/")[2]: each["text"] for url, each in state["objects"].items()}
    return {
        **{name: json.dumps(state[name], sort_keys=True) for name in CHANGED if name in state},
        "bindings": json.dumps(sorted(state["bindings"], key=json.dumps)),
        "pip.conf": texts.get("pip.conf"),
        "DAG": texts.get("bqdispatch.py"),
    }


def deployed_once(cloud, means, made, *, by_prefix=False, **config):
    """Deploy; gives what it changed, and how it ended.

    :param made: what Terraform knows to have made.
    """
    before = parts(cloud)
    if means == "the command":
        done = cloud.deploy(*["--by-prefix"] * by_prefix, **config)
    else:
        made.apply()
        done = cloud.deploy("--no-rights", **config)
    after = parts(cloud)
    changed = ", ".join(word for name, word in CHANGED.items() if before[name] != after[name])
    if done.returncode:
        assert "pip.conf sets index-url" in done.stderr
        assert not changed
        return "refused", after
    return "all" if len(changed.split(", ")) == len(CHANGED) else changed or "nothing", after


def sorted_json(value):
    return json.dumps(value, sort_keys=True)


def of_rights(cloud, new, folder):
    """Yield the rows of changes after which one of both ways may leave more rights than the other."""
    for what, (by_prefix, change) in OF_RIGHTS.items():
        cells, ends = [], []
        for means in MEANS:
            cloud.set(**new)
            cloud.document()
            made = Terraform(cloud, folder / f"{what}, {means}", by_prefix=by_prefix)
            deployed_once(cloud, means, made, by_prefix=by_prefix)
            config = {"config": url} if (url := change(cloud)) else {}
            made = Terraform(cloud, folder / f"{what}, {means}", by_prefix=by_prefix, **config)
            first, _ = deployed_once(cloud, means, made, by_prefix=by_prefix, **config)
            second, end = deployed_once(cloud, means, made, by_prefix=by_prefix, **config)
            assert second == "nothing"
            cells.append(f"{first}, {second}")
            ends.append(end)
        command, terraform = (set(map(sorted_json, json.loads(end.pop("bindings")))) for end in ends)
        assert ends[0] == ends[1]
        left = {"the command": command - terraform, "Terraform": terraform - command}
        assert all(len(found) <= 1 for found in left.values())
        said = " and ".join(f"{means} leaves a binding" for means, found in left.items() if found)
        yield f"| {what} | {' | '.join(cells)} | {said or 'the same'} |"


@pytest.fixture(scope="session")
def page(request):
    given = request.config.getoption("--deployments")
    return given and Path(given)


@pytest.mark.skipif(not shutil.which("terraform"), reason="terraform is not here")
def test_the_first_time_brings_it_about_and_the_second_changes_nothing(cloud_project, tmp_path, page):
    new = cloud_project.state()
    rows, ends = {"new": {}}, {}
    for means in MEANS:
        cloud_project.set(**new)
        made = Terraform(cloud_project, tmp_path / means)
        first, _ = deployed_once(cloud_project, means, made)
        second, ends[means] = deployed_once(cloud_project, means, made)
        rows["new"][means] = (first, second, ends[means])
        there = cloud_project.state()
        for what, change in BY_HAND.items():
            cloud_project.set(**there)
            change(cloud_project)
            first, _ = deployed_once(cloud_project, means, made)
            rows.setdefault(what, {})[means] = (first, *deployed_once(cloud_project, means, made))
        # What this one has left is where the other one begins.
        cloud_project.set(**there)
        (other,) = {*MEANS} - {means}
        made = Terraform(cloud_project, tmp_path / f"{other}, second")
        first, _ = deployed_once(cloud_project, other, made)
        rows.setdefault("the other has deployed", {})[other] = (first, *deployed_once(cloud_project, other, made))
    lines = ["| an environment | " + " | ".join(f"{means}: first, second" for means in MEANS) + " | the end |"]
    lines.append("| --- |" + " --- |" * (len(MEANS) + 1))
    wanted = ends["the command"]
    for what, by in rows.items():
        same = all(each[2] == wanted for each in by.values())
        assert same or "another index" in what
        assert all(each[1] in ("nothing", "refused") for each in by.values())
        cells = [f"{by[means][0]}, {by[means][1]}" for means in MEANS]
        lines.append(f"| {what} | {' | '.join(cells)} | {'the same' if same else 'as it was'} |")
    table = "\n".join([*lines, *of_rights(cloud_project, new, tmp_path)])
    if page:
        write(page, "deployments", table)
    else:
        assert (
            re.search(r"<!-- deployments -->\n(.*?)\n<!-- /deployments -->", README.read_text(), re.DOTALL)[1] == table
        )
