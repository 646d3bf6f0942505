"""A hostile pip.conf or URL of a wheel costs linear time."""

import re

import pytest
from called import calls_of, patterns_in
from fake_gcloud import INDEX

from bqdispatch_provider.commands import packages
from bqdispatch_provider.commands.packages import MAX_PIP_CONF_BYTES, PipConf, Wheel


@pytest.fixture
def parsed(monkeypatch):
    """The sizes of the texts that the parser is given."""
    sizes = []
    settings = packages._settings
    monkeypatch.setattr(packages, "_settings", lambda text: sizes.append(len(text)) or settings(text))
    return sizes


def test_a_file_with_many_lines_that_look_like_a_header_is_parsed_a_few_times(parsed):
    conf = PipConf("[install]\na =\n" + "  [global]\n" * 5_000)
    with pytest.raises(ValueError, match="no line can be added"):
        conf.insertion(INDEX)
    assert len(parsed) <= 11


@pytest.mark.parametrize(
    "text",
    [
        "[global]\na" + " " * 30_000 + "b\n",
        "[global]\na" + "\t " * 50 + "b\n",
        "[global]\n  a" + "\u2003" * 100 + "b = 1",
        "# " + " " * 100 + "x",
        "[global]\n" + "a = 1\n" * 20_000,
    ],
    ids=["spaces", "tabs", "wide spaces", "comment", "large"],
)
def test_what_pip_would_read_for_ever_is_not_parsed(parsed, text):
    with pytest.raises(ValueError, match=r"within a line|65,536 bytes"):
        PipConf(text)
    assert parsed == []


@pytest.mark.parametrize(
    "text",
    [
        "[global]\n" + "\n" * 1000 + "a = 1\n" + " " * 1000 + "\n",
        "[global]\n" + " " * 1000 + "a = 1" + " " * 1000 + "\n",
        f"[global]\nproxy = https://_json_key_base64:{'x' * 4000}@europe-python.pkg.dev/p/r/simple/\n",
    ],
)
def test_spaces_around_lines_and_long_keys_are_read(text):
    assert INDEX in PipConf(text).with_index(INDEX)


def test_a_large_file_is_not_even_fetched(cloud_project):
    cloud_project.set_pip_conf("[global]\n" + "a = 1\n" * (MAX_PIP_CONF_BYTES // 6))
    done = cloud_project.deploy()
    assert done.returncode == 1
    assert "pip.conf has more than 65,536 bytes" in done.stderr
    assert not [call for call in cloud_project.calls if "cat" in call and "pip.conf" in str(call)]


@pytest.mark.parametrize("given", ["/" * 100_000, "//" * 50_000 + "x", "https:" + "//a" * 30_000 + "@x/y.whl"])
def test_credentials_are_found_without_a_pattern(given):
    """A pattern that begins anywhere and ends at the last ``@`` takes the square of the text's length."""
    called, refusal = calls_of(Wheel.parse, given, fails=ValueError)
    assert re.search(r"no (URL|wheel|hash)|without a hash", str(refusal))
    assert isinstance(refusal, ValueError)
    assert [each for each in patterns_in(called) if "@" in each.pattern] == []


@pytest.mark.parametrize(
    ("url", "credentials"),
    [
        ("https://u:p@h/x.whl", "u:p"),
        ("https://u:p/q@r@h/x.whl", "u:p/q@r"),
        ("https://@h/x.whl", ""),
        ("https://h/x.whl", ""),
        ("x@y.whl", ""),
    ],
)
def test_credentials_reach_from_the_slashes_to_the_last_at_sign(url, credentials):
    assert packages._credentials(url) == credentials
