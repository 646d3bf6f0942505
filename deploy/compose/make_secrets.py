"""Makes what is missing of the secrets, and takes away the marks of the profiles of the last start."""

import json
import os
import secrets
from base64 import urlsafe_b64encode
from pathlib import Path

HOME = Path("/opt/bqdispatch")
LOGINS, PASSWORDS, PROFILE, SETUP = (HOME / each for each in ("logins", "passwords", "profile", "setup"))


def keep(path: Path, new: str, mode: int = 0o660) -> str:
    """Return the secret that lies there; write a new one if there is none."""
    if not path.exists():
        # Under its name only once it is whole.
        part = path.with_suffix(".part")
        part.write_text(new)
        part.chmod(mode)
        part.rename(path)
    return path.read_text()


def main() -> None:
    """Make them."""
    # The servers read theirs as users of their own.
    postgres = keep(PASSWORDS / "postgres", secrets.token_hex(), 0o644)
    redis = keep(PASSWORDS / "redis", secrets.token_hex(), 0o644)
    database = f"airflow:{postgres}@postgres/airflow"
    keep(SETUP / "api_secret_key", secrets.token_hex())
    keep(SETUP / "broker_url", f"redis://:{redis}@redis:6379/0")
    keep(SETUP / "fernet_key", urlsafe_b64encode(secrets.token_bytes()).decode())
    keep(SETUP / "jwt_secret", secrets.token_hex())
    keep(LOGINS / "logins.json", json.dumps({"admin": secrets.token_urlsafe(12)}))
    keep(SETUP / "result_backend", f"db+postgresql://{database}")
    keep(SETUP / "sql_alchemy_conn", f"postgresql+psycopg2://{database}")
    for mark in PROFILE.iterdir():
        mark.unlink()


if __name__ == "__main__":
    os.umask(0o007)
    main()
