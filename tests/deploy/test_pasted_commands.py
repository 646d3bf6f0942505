"""A command that a deployment prints is of printable characters alone, and does what the deployment would do."""

import re
import subprocess

from clouds import ROOT
from terminal import on_a_terminal

from bqdispatch_provider.core.setups import SetUp

KEYS = "\x7f" * 700 + "id > owned #"
"""Keys that erase what was typed before them, and what a shell would run then."""

DAG = "gs://europe-west1-ops-1234-bucket/dags/bqdispatch.py"


def typed(cloud, command):
    """Type a command into a shell as its keys, as a terminal without bracketed paste does."""
    shell = ["env", "-C", cloud.folder, "bash", "--norc", "-i"]
    environment = cloud.shell | {"PS1": "$ ", "HISTFILE": ""}
    code, shown, _ = on_a_terminal(shell, press={b"$ ": f"{command}\nexit\n".encode()}, **environment)
    assert code == 0, shown


def run(cloud, command):
    """Run a command that somebody has copied."""
    subprocess.run(["bash", "-c", command], cwd=cloud.folder, env=cloud.shell, check=True, capture_output=True)


def test_a_folder_of_the_configuration_runs_nothing_when_a_line_is_pasted(cloud_project):
    cloud_project.document(AsyncTaskURL=f"gs://acme-ops/{KEYS}")
    script = cloud_project.dry_run("--by-prefix")
    (line,) = [line for line in script.splitlines() if "owned" in line]
    typed(cloud_project, line)
    assert not (cloud_project.folder / "owned").exists()
    assert line.isprintable()
    pasted = cloud_project.bindings
    assert cloud_project.deploy("--by-prefix").returncode == 0
    assert pasted == cloud_project.bindings[:1]


def test_what_a_connection_holds_is_printable_and_exact(cloud_project):
    extra = {"config_url": "gs://acme-config/old.json", "subscription": "x\x7f\x9b2J\u202e'é"}
    known = {"conn_type": "bqdispatch", "password": "hunter2", "extra": extra}
    cloud_project.set_connection(known)
    script = cloud_project.dry_run()
    assert all(line.isprintable() for line in script.splitlines())
    (line,) = re.findall(r"^gcloud .*--update-env-variables.*$", script, re.MULTILINE)
    run(cloud_project, line.replace("…", "hunter2"))
    assert cloud_project.connection == known | {"extra": extra | {"config_url": "gs://acme-config/dispatch.json"}}


def test_a_connection_that_cannot_be_encoded_is_printed(cloud_project):
    extra = {"config_url": "gs://acme-config/old.json", "subscription": "x\ud800"}
    cloud_project.set_connection({"conn_type": "bqdispatch", "password": "hunter2", "extra": extra})
    assert b"--update-env-variables" in cloud_project.dry_run().encode()


def test_a_value_of_the_command_line_is_printed_as_one_word(cloud_project):
    done = cloud_project.deploy("--var", f"x={KEYS}'\\")
    (command,) = re.findall(r"`(bqdispatch smoke .*?)`", done.stderr)
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {command}"], text=True).splitlines()
    assert (command.isprintable(), words[-1]) == (True, f"--var=x={KEYS}'\\")


def test_the_command_of_a_step_that_failed_does_what_the_step_does(cloud_project):
    cloud_project.set(refuse={f"storage cp - {DAG}": "PERMISSION_DENIED"})
    done = cloud_project.deploy()
    (command,) = re.findall(r"`(printf .*?)` failed: ", done.stderr)
    cloud_project.set(refuse={})
    typed(cloud_project, command)
    assert cloud_project.objects[DAG]["text"] == SetUp().dag_source


def test_one_module_alone_quotes_for_a_shell():
    package = ROOT / "bqdispatch_provider"
    assert [path.name for path in package.rglob("*.py") if "shlex" in path.read_text()] == ["names.py"]
