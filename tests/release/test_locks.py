"""Packages that `make` installs are those that were locked: each by its hash, from no index that a file names."""

import runpy
from pathlib import Path

import pytest

locks = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "locks.py"))
HASH = f"    --hash=sha256:{'0' * 64}"


def test_packages_with_hashes_are_fine():
    assert (
        locks["findings"](
            f"# of us\na==1 ; python_version < '4' \\\n{HASH} \\\n{HASH}\n    # via b\nb[c]==2 \\\n{HASH}\n"
        )
        == []
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a==1\n", ["a==1 has no hash"]),
        (f"a==1\nb==2 \\\n{HASH}\n", ["a==1 has no hash"]),
        (
            f"--index-url https://mirror/simple\na==1 \\\n{HASH}\n",
            ["'--index-url https://mirror/simple' is no version of a package", "--index-url has no hash"],
        ),
        (f"a @ https://mirror/a.whl \\\n{HASH}\n", ["'a @ https://mirror/a.whl \\\\' is no version of a package"]),
        (f"a>=1 \\\n{HASH}\n", ["'a>=1 \\\\' is no version of a package"]),
    ],
)
def test_what_is_not_locked_is_named(text, said):
    assert sorted(locks["findings"](text)) == sorted(said)
