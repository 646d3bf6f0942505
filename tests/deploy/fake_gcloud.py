"""What `gcloud` and `uv` would do to a project, kept in one JSON file: answers and refusals as the real ones give them.

Called by scripts of their names on PATH, which a test writes. Each call is appended to `calls`.
"""

import base64
import hashlib
import json
import os
import re
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_GCLOUD"])
PACKAGE = "airflow-provider-bqdispatch"


class Refused(Exception):
    pass


def main():
    state = json.loads(STATE.read_text())
    program, *words = sys.argv[1:]
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    state["calls"].append([program, *words])
    try:
        for part, said in state["refuse"].items():
            if part in " ".join(words):
                raise Refused(said)
        answer = (gcloud if program == "gcloud" else uv)(state, words, given)
        code = 0
    except Refused as error:
        answer, code = None, 1
        print(f"ERROR: (gcloud) {error}", file=sys.stderr)
    STATE.write_text(json.dumps(state))
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer))
    sys.exit(code)


def uv(state, words, given):
    name = f"dist/{PACKAGE.replace('-', '_')}-{state['version']}-py3-none-any.whl"
    if words[0] == "build":
        Path("dist").mkdir(exist_ok=True)
        Path(name).write_text(state["source"])
    else:
        assert os.environ["UV_PUBLISH_PASSWORD"] == "ya29.token"
        assert state["repository"]
        digest = base64.b64encode(hashlib.sha256(Path(words[-1]).read_bytes()).digest()).decode()
        assert not state["files"], "a version is uploaded once only"
        state["files"].append({"name": f"{name} in the repository", "hashes": [{"type": "SHA256", "value": digest}]})


def gcloud(state, words, given):
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
    command = " ".join(word for word in words if not word.startswith("--"))
    for pattern, act in COMMANDS.items():
        if match := re.fullmatch(pattern, command):
            return act(state, options, given, *match.groups())
    raise Refused(f"Invalid choice: {command!r}")


def describe(state, options, given, name):
    if name != state["environment"]:
        raise Refused(f"NOT_FOUND: Failed to find environment [projects/p/locations/l/environments/{name}]")
    return {
        "name": f"projects/acme-ops/locations/{options['location']}/environments/{name}",
        "state": state["state"],
        "config": {
            "dagGcsPrefix": "gs://europe-west1-ops-1234-bucket/dags",
            "nodeConfig": {"serviceAccount": "composer@acme-ops.iam.gserviceaccount.com"},
            "softwareConfig": {
                "imageVersion": state["image"],
                "pypiPackages": state["packages"],
                "envVariables": state["variables"],
            },
        },
    }


def update(state, options, given, name):
    before = json.dumps([state["packages"], state["variables"]])
    if "update-pypi-package" in options:
        assert PACKAGE in state["pip_conf"] or "bqdispatch/simple/" in state["pip_conf"]
        package, _, version = options["update-pypi-package"].partition("==")
        state["packages"][package] = f"=={version}"
    if "update-env-variables" in options:
        _, mark, pairs = options["update-env-variables"].split("^", 2)
        state["variables"] |= dict(pair.split("=", 1) for pair in pairs.split(mark))
    for each in filter(None, options.get("remove-env-variables", "").split(",")):
        del state["variables"][each]
    if json.dumps([state["packages"], state["variables"]]) == before:
        raise Refused("INVALID_ARGUMENT: No change in configuration. Must specify a change.")


def run(state, options, given, name, rest):
    if state["old"] and "airflow-3" in state["image"]:
        raise Refused(
            f'The subcommand "{rest.split()[0]}" is not supported for Composer environments with Airflow version 3.'
        )


def describe_role(state, options, given, role):
    if role not in state["roles"]:
        raise Refused(f"NOT_FOUND: The role named projects/{options['project']}/roles/{role} was not found.")
    return state["roles"][role]


def create_role(state, options, given, verb, role):
    if (verb == "create") == (role in state["roles"]):
        raise Refused(f"ALREADY_EXISTS: A role named {role} already exists, or does not.")
    if verb == "undelete":
        del state["roles"][role]["deleted"]
    else:
        permissions = re.findall(r"^ *- ([\w.]+)", Path(options["file"]).read_text(), re.MULTILINE)
        state["roles"][role] = {"includedPermissions": permissions}


def bind(state, options, given, where):
    binding = [where, options["member"], options["role"]]
    if binding not in state["bindings"]:
        state["bindings"].append(binding)


def describe_repository(state, options, given):
    if not state["repository"]:
        raise Refused("NOT_FOUND: Requested entity was not found.")
    return {"format": "PYTHON"}


def create_repository(state, options, given):
    assert not state["repository"]
    state["repository"] = True


def describe_object(state, options, given, url):
    if state["pip_conf"] is None:
        raise Refused(f"{url} not found: 404.")
    return {"generation": "17"}


def copy(state, options, given, url):
    if "/dags/" in url:
        state["dag_files"][url] = given
        return
    assert options["if-generation-match"] == ("0" if state["pip_conf"] is None else "17")
    state["pip_conf"] = given


COMMANDS = {
    r"composer environments describe (\S+)": describe,
    r"composer environments update (\S+)": update,
    r"composer environments run (\S+) (.+)": run,
    r"composer environments storage dags import": lambda *_: None,
    r"iam roles describe (\S+)": describe_role,
    r"iam roles (create|update|undelete) (\S+)": create_role,
    r"storage buckets add-iam-policy-binding (\S+)": bind,
    r"projects add-iam-policy-binding (\S+)": bind,
    r"artifacts repositories add-iam-policy-binding (\S+)": bind,
    r"artifacts repositories describe bqdispatch": describe_repository,
    r"artifacts repositories create bqdispatch": create_repository,
    r"artifacts files list": lambda state, *_: state["files"],
    r"storage objects describe (\S+)": describe_object,
    r"storage cat (\S+)": lambda state, *_: state["pip_conf"],
    r"storage cp - (\S+)": copy,
    r"auth print-access-token": lambda *_: "ya29.token",
}

main()
