"""Make an environment for each supported version of Airflow and of the google provider, and test in it.

``run`` runs tests/airflow, and runs that hand over in a real scheduler, in each environment, below ``.venv/matrix``.
With ``--write`` it puts what passed into docs/versions.md. ``soak`` runs soak_deferral.py there. ``lock`` resolves the
packages of each Airflow into ``.ci/``. Both versions of the google provider go with the same packages, so a lock serves
both.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / ".ci"
NEWEST = LOCKS / "requirements.lock"
GOOGLE = "apache-airflow-providers-google"
COMPOSERS_GOOGLE = "22.2.2"
OLDER = ("2.11.2", "3.1.8", "3.2.2")
UV = [sys.executable, ".ci/uv.py"]
locks = runpy.run_path(str(LOCKS / "locks.py"))
MARKS = "<!-- matrix -->", "<!-- /matrix -->"
TESTS = ["tests/airflow", "tests/live/test_every_version.py"]
HEAD = ("Airflow", "google provider", "tests passed", "failed", "skipped")


def locked(package: str, lock: Path = NEWEST) -> str:
    """Return the version of a package in a lock file."""
    return re.search(rf"^{re.escape(package)}==([^\s;]+)", lock.read_text(), re.MULTILINE)[1]


def lock_of(airflow: str) -> Path:
    """Return the lock file of an Airflow."""
    return NEWEST if airflow == locked("apache-airflow") else LOCKS / f"airflow-{airflow}.lock"


@dataclass(frozen=True)
class Versions:
    """One row of the matrix: an Airflow, and a google provider."""

    airflow: str
    google: str

    @property
    def home(self) -> Path:
        return ROOT / ".venv" / "matrix" / f"{self.airflow}-google-{self.google}"

    def make(self) -> None:
        """Make the environment: the packages of the lock file, with this google provider."""
        python = str(self.home / "bin" / "python")
        uv("venv", "--quiet", "--clear", "--python", sys.executable, str(self.home))
        uv("pip", "sync", "--quiet", "--python", python, str(lock_of(self.airflow)))
        install = ["pip", "install", "--quiet", "--python", python, "--no-deps"]
        exactly = locks["block"](GOOGLE, self.google)
        uv(*install, "--require-hashes", "--requirement", "-", given=exactly)
        uv(*install, "--editable", ".")

    def run(self, tests: list[str]) -> tuple[int, int, int]:
        """Run tests in the environment.

        :returns: how many passed, failed and were skipped.
        """
        print(f"\nAirflow {self.airflow} with google provider {self.google}:", flush=True)
        self.make()
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            pytest = [str(self.home / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider", "--quiet"]
            pytest += ["-n", "4", "--dist", "worksteal"]
            ended = subprocess.run([*pytest, f"--junit-xml={report}", *tests], cwd=ROOT, check=False)
            if ended.returncode not in (0, 1):
                sys.exit(f"pytest has run no tests of {self.home.name}, and ended with {ended.returncode}; see above")
            suite = ElementTree.parse(report).getroot().find("testsuite").attrib
        failed, skipped = int(suite["failures"]) + int(suite["errors"]), int(suite["skipped"])
        assert bool(failed) == bool(ended.returncode), f"pytest ended with {ended.returncode}"
        return int(suite["tests"]) - failed - skipped, failed, skipped

    def soak(self, minutes: str) -> int:
        """Run the deferral soak in the environment.

        :returns: its exit code.
        """
        self.make()
        command = [str(self.home / "bin" / "python"), "tests/tools/soak_deferral.py", "--minutes", minutes]
        paths = os.pathsep.join((str(ROOT / "tests"), str(ROOT / "tests" / "support")))
        return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode


def matrix() -> list[Versions]:
    """Return all rows: on each Airflow, Composer's google provider and the newest one."""
    airflows = (*OLDER, locked("apache-airflow"))
    return [Versions(airflow, google) for airflow in airflows for google in (COMPOSERS_GOOGLE, locked(GOOGLE))]


def uv(*arguments: str, given: str | None = None) -> None:
    subprocess.run([*UV, *arguments], cwd=ROOT, input=given, text=True, check=True)


def lock() -> None:
    """Resolve the packages of each older Airflow."""
    options = ["--python-version", "3.11", "--group", "dev", "--no-emit-index-url", "--no-emit-find-links"]
    options += ["--generate-hashes"]
    for airflow in OLDER:
        asked = f"apache-airflow=={airflow}\n{GOOGLE}=={COMPOSERS_GOOGLE}\n"
        command = [*UV, "pip", "compile", "--quiet", *options, "--no-header", "--upgrade"]
        command += ["--constraint", ".ci/older.txt", "pyproject.toml", "-"]
        command += ["--output-file", str(lock_of(airflow).relative_to(ROOT))]
        subprocess.run(command, cwd=ROOT, input=asked, text=True, check=True)


def row(each: Versions, passed: int, failed: int, skipped: int) -> str:
    return f"| {each.airflow} | {each.google} | {passed} | {failed} | {skipped} |"


def write(line: str) -> None:
    """Write a row into the table of docs/versions.md, in place of the row of the same versions."""
    page = ROOT / "docs" / "versions.md"
    before, after = page.read_text().split(MARKS[0])
    known, after = after.split(MARKS[1])
    lines = {tuple(each.split("|")[1:3]): each for each in [*known.strip().splitlines()[2:], line]}
    order = [(f" {each.airflow} ", f" {each.google} ") for each in matrix()]
    table = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(lines[key] for key in order if key in lines)]
    page.write_text("\n".join([f"{before}{MARKS[0]}", *table, f"{MARKS[1]}{after}"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "soak", "lock"))
    parser.add_argument("version", nargs="?", help="of Airflow, or as 2.11.2-google-22.2.2 of both; all by default")
    parser.add_argument("--minutes", default="10", help="of each soak (default: %(default)s)")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="put what passed into docs/versions.md")
    options = parser.parse_args()
    if options.what == "lock":
        lock()
        return 0
    chosen = [each for each in matrix() if options.version in (None, each.airflow, each.home.name)]
    if not chosen:
        parser.error(f"expected one of {', '.join(each.home.name for each in matrix())}")
    os.environ.pop("PYTHONPATH", None)
    if options.what == "soak":
        return max(each.soak(options.minutes) for each in chosen)
    whole = True
    for each in chosen:
        found = each.run(options.tests)
        whole = whole and not found[1]
        print(row(each, *found), flush=True)
        if options.write:
            write(row(each, *found))
    return int(not whole)


if __name__ == "__main__":
    sys.exit(main())
