"""A project to `gcloud`, `uv` and `make`, kept in one JSON file: answers and refusals as the real ones'.

Called by scripts of their names on PATH, which a test writes, or within the process of the test. Each call is appended
to `calls`. Options are those that Google Cloud SDK 528 has; lists are split as its `arg_parsers` splits them.
"""

import base64
import fcntl
import hashlib
import io
import json
import os
import re
import sys
import zipfile
from pathlib import Path

PACKAGE = "airflow-provider-bqdispatch"
PIP_CONF = "gs://europe-west1-ops-1234-bucket/config/pip/pip.conf"
INDEX = "https://europe-west1-python.pkg.dev/acme-ops/bqdispatch-index/simple/"


class Refused(Exception):
    pass


def main():
    program, *words = sys.argv[1:]
    code, printed, refused = call(program, words, b"" if sys.stdin.isatty() else sys.stdin.buffer.read())
    sys.stderr.write(refused)
    sys.stdout.buffer.write(printed)
    sys.exit(code)


def call(program, words, stdin):
    """Carry out a call.

    :returns: its exit code, and what it prints on both streams.
    """
    given = stdin.decode(errors="surrogateescape")
    # The parts of a pipeline run at the same time.
    with Path(os.environ["FAKE_GCLOUD"]).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        state["calls"].append([program, *words])
        try:
            for part, said in state["refuse"].items():
                if part in " ".join(words):
                    raise Refused(said)
            answer = PROGRAMS[program](state, words, given)
            refused = ""
        except Refused as error:
            answer, refused = None, f"ERROR: (gcloud) {error}\n"
        file.seek(0)
        file.truncate()
        json.dump(state, file)
    text = "" if answer is None else answer if isinstance(answer, str) else json.dumps(answer)
    return int(bool(refused)), text.encode(errors="surrogateescape"), refused


def wheel(version, source, name=PACKAGE):
    """A wheel, the same bytes for the same source."""
    folder = f"{PACKAGE.replace('-', '_')}-{version}.dist-info"
    parts = {
        "bqdispatch_provider/__init__.py": source,
        f"{folder}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        f"{folder}/RECORD": "",
    }
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for path, text in parts.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return written.getvalue()


def build(state, words, given):
    assert words[-2:] == ["dist", "DIST=dist"]
    Path("dist").mkdir(exist_ok=True)
    name = f"{PACKAGE.replace('-', '_')}-{state['version']}-py3-none-any.whl"
    Path("dist", name).write_bytes(wheel(state["version"], state["source"]))


def publish(state, words, given):
    assert words[0] == "publish"
    assert os.environ["UV_PUBLISH_PASSWORD"] == "ya29.token"
    assert "bqdispatch" in state["repositories"]
    path = Path(words[-1])
    digest = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
    assert path.name not in {file["name"].rpartition("/")[2] for file in state["files"]}, "a file is uploaded once only"
    state["files"].append(
        {
            "name": f"projects/acme-ops/locations/europe-west1/repositories/bqdispatch/files/{path.name}",
            "hashes": [{"type": "SHA256", "value": digest}],
            "version": path.name.split("-")[1],
        }
    )


def gcloud(state, words, given):
    own = words[: words.index("--")] if "--" in words else words  # what follows is for Airflow
    options = dict(word.removeprefix("--").partition("=")[::2] for word in own if word.startswith("--"))
    command = " ".join([*(word for word in own if not word.startswith("--")), *words[len(own) :]])
    for pattern, (act, known) in COMMANDS.items():
        if match := re.fullmatch(pattern, command):
            unknown = options.keys() - {*known.split(), "project", "format", "quiet"}
            if unknown:
                raise Refused(f"unrecognized arguments: {unknown}")
            return act(state, options, given, *match.groups())
    raise Refused(f"Invalid choice: {command!r}")


def items(value):
    """A list as gcloud's ArgList reads it."""
    mark = ","
    if value.startswith("^") and "^" in value[1:]:
        mark, value = value[1:].split("^", 1)
    return value.split(mark)


def pairs(value):
    """A dictionary as gcloud's ArgDict reads it."""
    if bad := [item for item in items(value) if "=" not in item]:
        raise Refused(f"argument: Bad syntax for dict arg: {bad}")
    return dict(item.split("=", 1) for item in items(value))


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


def list_environments(state, options, given):
    """Those of a region: the one that is deployed to, and others that a test has put beside it."""
    own = describe(state, {"location": options["locations"]}, given, state["environment"])
    others = [
        {**own, "name": own["name"].rpartition("/")[0] + f"/{name}", "config": {"softwareConfig": software}}
        for name, software in state.get("neighbours", {}).items()
    ]
    return [own, *others]


def update(state, options, given, name):
    before = json.dumps([state["packages"], state["variables"]])
    if "update-pypi-package" in options:
        package, constraints = re.match(r"([\w.-]+)(.*)", options["update-pypi-package"]).groups()
        state["installed"] = installed(state, constraints.rpartition("===")[2])
        state["packages"][package] = constraints
    if "update-env-variables" in options:
        state["variables"] |= pairs(options["update-env-variables"])
    for each in filter(None, options.get("remove-env-variables", "").split(",")):
        state["variables"].pop(each, None)
    if json.dumps([state["packages"], state["variables"]]) == before:
        raise Refused("INVALID_ARGUMENT: No change in configuration. Must specify a change.")


def installed(state, version):
    """Whose wheel pip installs: the best of all indexes, whichever has it; a virtual repository chooses by priority."""
    from configparser import RawConfigParser

    conf = RawConfigParser()
    conf.read_string(state["objects"].get(PIP_CONF, {}).get("text", ""))
    indexes = conf.get("global", "index-url", fallback="https://public.example/simple/").split()
    indexes += conf.get("global", "extra-index-url", fallback="").split()
    ours = ["ours"] * any(file["version"] == version for file in state["files"])
    public = state["public"].get(version, [])
    found = []
    for index in indexes:
        if index == INDEX:
            policies = state["repositories"]["bqdispatch-index"]["virtualRepositoryConfig"]["upstreamPolicies"]
            by = sorted(policies, key=lambda each: -each["priority"])
            upstreams = [public if each["repository"].endswith("-pypi") else ours for each in by]
            found += next(filter(None, upstreams), [])
        else:
            found += ours if "/bqdispatch/" in index else public
    if not found:
        raise Refused(f"FAILED_PRECONDITION: No matching distribution found for {PACKAGE}==={version}")
    return "a stranger's" if "a stranger's" in found else found[0]  # whose build tag is higher


def run(state, options, given, name, rest):
    words = rest.split()
    if state["old"] and "airflow-3" in state["image"]:
        raise Refused(f'The subcommand "{words[0]}" is not supported for Composer environments with Airflow version 3.')
    if words[:3] == ["pools", "set", "--"]:
        flag = "--include-deferred"
        name, slots = [word for word in words[3:] if word != flag][:2]
        state["pools"][name] = {"slots": int(slots), "include_deferred": flag in words}


def describe_role(state, options, given, role):
    name = f"projects/{options['project']}/roles/{role}"
    if name not in state["roles"]:
        raise Refused(f"NOT_FOUND: The role named {name} was not found.")
    return state["roles"][name]


def create_role(state, options, given, verb, role):
    name = f"projects/{options['project']}/roles/{role}"
    if (verb == "create") == (name in state["roles"]):
        raise Refused(f"ALREADY_EXISTS: A role named {role} already exists, or does not.")
    if verb == "undelete":
        del state["roles"][name]["deleted"]
    else:
        texts = {key: options[key] for key in ("title", "description", "stage")}
        state["roles"][name] = {**texts, "includedPermissions": options["permissions"].split(",")}


def policy(state, options, given, where):
    found = [
        {"role": role, "members": [member], **({"condition": condition} if condition else {})}
        for place, member, role, condition in state["bindings"]
        if place == where
    ]
    return {"bindings": found, "etag": "CAE="}


def bind(state, options, given, verb, where):
    limited = options.get("condition", "None")
    binding = [where, options["member"], options["role"], None if limited == "None" else pairs(limited)]
    if verb == "remove":
        if binding not in state["bindings"]:
            raise Refused("Policy bindings with the specified principal, role, and condition not found!")
        state["bindings"].remove(binding)
    elif binding not in state["bindings"]:
        state["bindings"].append(binding)


def describe_repository(state, options, given, name):
    if name not in state["repositories"]:
        raise Refused("NOT_FOUND: Requested entity was not found.")
    return state["repositories"][name]


def create_repository(state, options, given, verb, name):
    known = state["repositories"]
    if (verb == "create") == (name in known):
        raise Refused("ALREADY_EXISTS: the repository already exists, or does not.")
    if verb == "create":
        mode = options.get("mode", "standard-repository").upper().replace("-", "_")
        known[name] = {"format": options["repository-format"].upper(), "mode": mode}
        if "remote-python-repo" in options:
            public = {"publicRepository": options["remote-python-repo"]}
            known[name]["remoteRepositoryConfig"] = {"pythonRepository": public}
    if "upstream-policy-file" in options:
        assert options["upstream-policy-file"] == "/dev/stdin"
        policies = json.loads(given)
        assert all(each["repository"].rpartition("/")[2] in known for each in policies)
        known[name]["virtualRepositoryConfig"] = {"upstreamPolicies": policies}


def describe_object(state, options, given, url):
    if url not in state["objects"]:
        raise Refused(f"{url} not found: 404.")
    found = state["objects"][url]
    return {"generation": str(found["generation"]), "size": len(found["text"])}


def copy(state, options, given, url):
    generation = state["objects"].get(url, {}).get("generation", 0)
    if options.get("if-generation-match", str(generation)) != str(generation):
        raise Refused("HTTPError 412: At least one of the pre-conditions you specified did not hold.")
    state["objects"][url] = {"text": given, "generation": generation + 1}


BIND = "member role condition"
COMMANDS = {
    r"composer environments describe (\S+)": (describe, "location"),
    r"composer environments list": (list_environments, "locations"),
    r"composer environments update (\S+)": (
        update,
        "location update-pypi-package update-env-variables remove-env-variables",
    ),
    r"composer environments run (\S+) (.+)": (run, "location"),
    r"iam roles describe (\S+)": (describe_role, ""),
    r"iam roles (create|update|undelete) (\S+)": (create_role, "title description permissions stage"),
    r"storage buckets get-iam-policy (\S+)": (policy, ""),
    r"storage buckets (add|remove)-iam-policy-binding (\S+)": (bind, BIND),
    r"iam service-accounts get-iam-policy (\S+)": (policy, ""),
    r"iam service-accounts (add|remove)-iam-policy-binding (\S+)": (bind, BIND),
    r"projects get-iam-policy (\S+)": (policy, ""),
    r"projects (add|remove)-iam-policy-binding (\S+)": (bind, BIND),
    r"artifacts repositories get-iam-policy (\S+)": (policy, "location"),
    r"artifacts repositories (add|remove)-iam-policy-binding (\S+)": (bind, "location member role"),
    r"artifacts repositories describe (\S+)": (describe_repository, "location"),
    r"artifacts repositories (create|update) (\S+)": (
        create_repository,
        "location repository-format mode remote-python-repo upstream-policy-file",
    ),
    r"artifacts files list": (
        lambda state, options, *_: [each for each in state["files"] if each["version"] == options["version"]],
        "location repository package version",
    ),
    r"storage objects describe (\S+)": (describe_object, ""),
    r"storage cat (\S+)": (lambda state, _, __, url: state["objects"][url]["text"], ""),
    r"storage cp - (\S+)": (copy, "if-generation-match"),
    r"auth print-access-token": (lambda *_: "ya29.token\n", ""),
}

PROGRAMS = {"gcloud": gcloud, "uv": publish, "make": build}

if __name__ == "__main__":
    main()
