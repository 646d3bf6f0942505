"""deploy/composer/main.tf as far as it can be worked out without its providers, and what its resources would do."""

import json
import re
import subprocess

from clouds import ACCOUNT, ROOT

MAIN = ROOT / "deploy" / "composer" / "main.tf"
USUAL = {
    "project": "acme-ops",
    "location": "europe-west1",
    "environment": "ops",
    "config": "gs://acme-config/dispatch.json",
    "variables": {},
    "setup": None,
    "by_prefix": False,
    "job_projects": [],
}


def evaluated(folder, names, rights=None, **given):
    """Terraform's locals, worked out by Terraform itself: these need no provider.

    :param folder: of its own.
    :param names: which locals.
    :param rights: what the data source answers.
    :param given: variables of main.tf.
    """
    local = re.search(r"^locals \{\n.*?^\}\n", MAIN.read_text(), re.DOTALL | re.MULTILINE)[0]
    local = local.replace("data.external.rights.result", "var.rights")
    local = local.replace("data.google_composer_environment.airflow.config[0]", "var.airflow")
    airflow = {"node_config": [{"service_account": ACCOUNT.removeprefix("serviceAccount:")}]}
    nothing = dict.fromkeys(("roles", "buckets", "projects"), "{}")
    values = {**USUAL, **given, "rights": rights or nothing, "airflow": airflow}
    folder.mkdir(exist_ok=True)
    (folder / "main.tf").write_text(local + "".join(f'variable "{name}" {{\n  type = any\n}}\n' for name in values))
    (folder / "given.auto.tfvars.json").write_text(json.dumps(values))
    wanted = ", ".join(f"{name} = local.{name}" for name in names)
    done = subprocess.run(
        ["terraform", f"-chdir={folder}", "console"],
        input=f"jsonencode({{{wanted}}})\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(json.loads(done.stdout.splitlines()[-1]))


def rights(cloud, folder, **given):
    """Work out what main.tf would grant: call its program as it says, and take its locals from the answer."""
    program = evaluated(folder, ["program"], **given)["program"]
    assert program[:3] == ["bqdispatch", "deploy", "rights"]
    done = cloud.command(*program[1:])
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert all(isinstance(value, str) for value in answer.values())
    return evaluated(folder, ["roles", "buckets", "projects", "account"], answer, **given)


def apply(cloud, found):
    """Do what main.tf's resources do: a role is created, taken over or corrected; a missing binding is added."""
    roles = {
        f"projects/{role['project']}/roles/{role['role_id']}": {
            "title": role["title"],
            "description": role["description"],
            "stage": "GA",  # by default
            "includedPermissions": role["permissions"],
        }
        for role in found["roles"].values()
    }
    bindings = [
        [f"gs://{each['bucket']}", found["account"], each["role"], each["condition"]]
        for each in found["buckets"].values()
    ]
    bindings += [[each["project"], found["account"], each["role"], None] for each in found["projects"].values()]
    known = cloud.bindings
    cloud.set(roles=cloud.roles | roles, bindings=known + [each for each in bindings if each not in known])
