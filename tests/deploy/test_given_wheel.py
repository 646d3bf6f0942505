"""`bqdispatch deploy composer` outside a checkout, with a wheel that is given."""

import hashlib

import pytest
from fake_gcloud import wheel
from served import served

NAME = "airflow_provider_bqdispatch-7.1.0-py3-none-any.whl"
CONTENT = wheel("7.1.0", "somebody's build")
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def elsewhere(cloud_project, tmp_path):
    """A folder that is no checkout."""
    cloud_project.folder = tmp_path / "elsewhere"
    cloud_project.folder.mkdir()
    return cloud_project


@pytest.fixture
def path(tmp_path):
    """The wheel, on this machine."""
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / NAME
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def url(path):
    """The wheel, on a server."""
    with served(path.parent) as files:
        yield f"{files}/{NAME}"


def refused(cloud, *options):
    """A deployment that changes nothing, and what it says."""
    before = cloud.state()
    done = cloud.deploy(*options)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    after = cloud.state()
    changed = {name for name in before if before[name] != after[name]}
    assert not changed & {"files", "packages", "variables", "pools", "objects"}
    return done.stderr


def test_outside_of_a_checkout_it_says_what_to_give(elsewhere):
    said = refused(elsewhere)
    assert "is no checkout" in said
    assert "--wheel" in said
    assert "--published" in said
    assert elsewhere.calls == []


@pytest.mark.parametrize("fragment", ["", f"#sha256={SHA256}"])
def test_a_wheel_on_this_machine_is_deployed_in_its_own_version(elsewhere, path, fragment):
    done = elsewhere.deploy(f"--wheel={path}{fragment}")
    assert done.returncode == 0, done.stderr
    assert elsewhere.packages["airflow-provider-bqdispatch"] == "===7.1.0"
    assert elsewhere.installed == "ours"
    assert not any(call[0] == "make" for call in elsewhere.calls)
    again = elsewhere.deploy(f"--wheel={path}{fragment}")
    assert again.returncode == 0, again.stderr


def test_a_wheel_on_a_server_is_downloaded_and_deployed(elsewhere, url):
    """By the command of deploy/composer/README.md."""
    given = f"--wheel={url}#sha256={SHA256}"
    assert f"pip download --quiet --no-deps --dest=dist '{url}#sha256={SHA256}'" in elsewhere.dry_run(given)
    done = elsewhere.deploy(given)
    assert done.returncode == 0, done.stderr
    assert elsewhere.packages["airflow-provider-bqdispatch"] == "===7.1.0"


def test_a_wheel_on_a_server_needs_its_hash(elsewhere, url):
    assert f"expected {url}#sha256=" in refused(elsewhere, f"--wheel={url}")
    assert elsewhere.calls == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (f"https://deployer:hunter2@files.acme.example/{NAME}", "is given without a hash"),
        (f"https://deployer:hunter2@files.acme.example/{NAME}#sha256=1", "expected #sha256= and 64 hex digits"),
        (f"ftp://deployer:hunter2@files.acme.example/{NAME}#sha256={SHA256}", "is no URL of a wheel"),
        (f"https://deployer:hunter2@127.0.0.1:1/{NAME}#sha256={SHA256}", "check the URL and the hash"),
    ],
)
def test_no_password_in_the_url_of_a_wheel_is_repeated(elsewhere, given, said):
    error = refused(elsewhere, f"--wheel={given}")
    assert said in error
    assert "hunter2" not in error


@pytest.mark.parametrize("tag", ["any%2F..%2F..%2Fx", "any%2Fx", "any%5Cx", "any%0Ax"])
def test_a_wheel_whose_name_leads_elsewhere_is_refused(elsewhere, tag):
    given = f"https://files.acme.example/airflow_provider_bqdispatch-7.1.0-py3-none-{tag}.whl#sha256={SHA256}"
    assert "is no wheel of airflow-provider-bqdispatch" in refused(elsewhere, f"--wheel={given}")
    assert elsewhere.calls == []


def test_another_wheel_than_the_one_that_was_meant_is_not_uploaded(elsewhere, url, path):
    path.write_bytes(wheel("7.1.0", "a stranger's build"))
    refused(elsewhere, f"--wheel={url}#sha256={SHA256}")
    assert f"expected {SHA256}" in refused(elsewhere, f"--wheel={path}#sha256={SHA256}")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (NAME, wheel("7.1.0", "x", name="another-package"), "is 'another-package' '7.1.0' by its METADATA"),
        (NAME, wheel("7.2.0", "x"), "expected airflow-provider-bqdispatch 7.1.0"),
        (NAME, b"no zip", "is no wheel"),
        ("another_package-7.1.0-py3-none-any.whl", CONTENT, "is no wheel of airflow-provider-bqdispatch"),
        (NAME.replace(".whl", ".tar.gz"), CONTENT, "is no wheel of airflow-provider-bqdispatch"),
    ],
)
def test_what_is_no_wheel_of_ours_is_refused(elsewhere, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refused(elsewhere, f"--wheel={tmp_path / name}")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nowhere/" + NAME, "cannot be read"),
        (NAME + "#sha256=1234", "expected #sha256= and 64 hex digits"),
        (NAME + "#md5=" + "0" * 32, "expected #sha256= and 64 hex digits"),
        (f"ftp://127.0.0.1/{NAME}#sha256={SHA256}", "is no URL of a wheel"),
    ],
)
def test_what_cannot_be_taken_says_what_is_expected(elsewhere, given, said):
    assert said in refused(elsewhere, f"--wheel={given}")


def test_changed_code_under_an_old_version_is_refused(deployed):
    deployed.set(source="another wheel")
    done = deployed.deploy()
    assert done.returncode == 1
    assert "raise __version__" in done.stderr


def test_a_second_wheel_of_the_same_version_is_refused(deployed):
    """Whoever put it there: pip would take the one with the higher build tag."""
    other = {"name": deployed.files[0]["name"].replace("-py3", "-9-py3"), "hashes": [{"type": "SHA256", "value": "x"}]}
    deployed.set(files=[*deployed.files, {**other, "version": deployed.version}])
    done = deployed.deploy()
    assert done.returncode == 1
    assert "with other content" in done.stderr
