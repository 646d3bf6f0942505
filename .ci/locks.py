"""Check that the lock files hold each package by its hash, and no index or address.

Without the hash, an index could serve another file of the same version.
"""

import re
import sys
from pathlib import Path

LOCKS = Path(__file__).parent
PINNED = re.compile(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+( ; .+)?( \\)?")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def findings(text: str) -> list[str]:
    """Return what is wrong with a lock file's text, one sentence each."""
    found: list[str] = []
    package, hashes = "", 1
    for line in [*(line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), ""]:
        if HASH.fullmatch(line):
            hashes += 1
            continue
        if not hashes:
            found.append(f"{package} has no hash")
        package, hashes = line.partition(" ")[0], 0
        if line and not PINNED.fullmatch(line):
            found.append(f"{line!r} is no version of a package")
    return found


def block(package: str, version: str) -> str:
    """Return the lines of a package of one version in a lock file, with its hashes.

    :raises LookupError: when no lock file has it.
    """
    named = rf"^{re.escape(package)}=={re.escape(version)}"
    wanted = re.compile(named + r"( ;[^\\\n]*)? \\\n(    --hash=.*\n)+", re.MULTILINE)
    for lock in sorted(LOCKS.glob("*.lock")):
        if found := wanted.search(lock.read_text()):
            return found[0]
    raise LookupError(f"no lock file has {package} {version}")


if __name__ == "__main__":
    wrong = [f"{lock.name}: {each}" for lock in sorted(LOCKS.glob("*.lock")) for each in findings(lock.read_text())]
    sys.exit("\n".join(wrong) or None)
