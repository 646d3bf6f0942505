"""`make` fetches packages from where pip does."""

import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from served import served

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "uv.py"


@pytest.fixture
def index(tmp_path):
    """The URL of an index on this machine that has one package."""
    folder = tmp_path / "index" / "only-here"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "only_here-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("only_here.py", "")
        wheel.writestr("only_here-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: only-here\nVersion: 1.0\n")
        wheel.writestr("only_here-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("only_here-1.0.dist-info/RECORD", "")
    with served(folder.parent) as packages:
        yield packages


@pytest.mark.parametrize("setting", ["index-url", "extra-index-url"])
@pytest.mark.parametrize("by", ["environment", "file"])
def test_an_index_that_pip_is_told_of_is_used(tmp_path, index, by, setting):
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    settings = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    if by == "file":
        (tmp_path / "pip.conf").write_text(f"[global]\n{setting} = {index}\n")
    else:
        settings["PIP_" + setting.upper().replace("-", "_")] = index
    install = ["pip", "install", "--quiet", "--no-deps", "--no-cache", "--target", tmp_path / "there", "only-here"]
    subprocess.run([sys.executable, SCRIPT, *install], env={**known, **settings}, check=True)
    assert (tmp_path / "there" / "only_here.py").exists()


def test_what_the_environment_says_counts_more_than_a_file():
    environment = runpy.run_path(str(SCRIPT))["environment"]
    listed = """:env:.cert='/company.pem'
global.cert='/file.pem'
global.find-links='/one\\n/two'
global.index-url='https://user:word@mirror/simple'
install.index-url='https://other/simple'
install.trusted-host='mirror'
global.timeout='60'"""
    assert environment(listed) == {
        "UV_SYSTEM_CERTS": "true",
        "SSL_CERT_FILE": "/company.pem",
        "UV_FIND_LINKS": "/one,/two",
        "UV_DEFAULT_INDEX": "https://other/simple",
        "UV_INSECURE_HOST": "mirror",
    }
