"""A hostile configuration document costs linear time: what is compared, named and filled in is bounded."""

import json
import logging

import pytest

from bqdispatch_provider import config_keys
from bqdispatch_provider.config import DispatchConfig
from bqdispatch_provider.config_errors import MAX_NAMED, ConfigError
from bqdispatch_provider.connection_extra import ConnectionExtra
from bqdispatch_provider.core.connection import updated_connection

PLACES = {"AsyncTaskURL": "gs://ops/BqDispatch/Tasks/", "JournalURL": "gs://ops/journal", "ErrorURL": "gs://ops/errors"}
MISSPELT = {f"MaxConcurrentJobs{chr(0x4E00 + number % 20_000)}{number // 20_000}": 1 for number in range(46_000)}
MANY = {f"{'x' * (number % 30)}{number}": 1 for number in range(46_000)}


@pytest.fixture
def compared(monkeypatch):
    keys = []
    compare = config_keys.get_close_matches
    monkeypatch.setattr(config_keys, "get_close_matches", lambda key, *more: keys.append(key) or compare(key, *more))
    return keys


@pytest.mark.parametrize("keys", [MISSPELT, MANY], ids=["misspelt", "other"])
def test_few_of_many_ignored_keys_are_compared_and_named(keys, compared, caplog):
    caplog.set_level(logging.INFO)
    config = DispatchConfig.from_dict({**PLACES, **keys})
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.endswith(f" and {46_000 - MAX_NAMED:,} more")
    assert len(message) < 3000
    assert len(compared) <= 500
    assert len(config.misspelt) == (MAX_NAMED if keys is MISSPELT else 0)


@pytest.mark.parametrize("limit", ["Jobs", "Load"])
def test_a_misspelt_limit_is_found_among_all_keys_that_bqtail_knows(caplog, limit):
    misspelt, meant = f"MaxConcurent{limit}", f"MaxConcurrent{limit}"
    others = {f"Aaa{number}URL": 1 for number in range(400)}
    assert DispatchConfig.from_dict({**PLACES, **others, misspelt: 1}).misspelt == {misspelt: meant}
    assert f"{misspelt} (not {meant})" in caplog.text


def test_a_long_key_is_not_compared(compared):
    DispatchConfig.from_dict({**PLACES, **{f"{number}{'x' * 10_000}": 1 for number in range(50)}})
    assert compared == []


def test_of_an_invalid_document_with_many_keys_few_are_compared(compared):
    with pytest.raises(ConfigError):
        DispatchConfig.from_dict(MISSPELT)
    assert len(compared) <= 500


class Variables(dict):
    """Variables that count how often they are all gone through."""

    seen = 0

    def __iter__(self):
        self.seen += 1
        return super().__iter__()


def test_the_given_variables_are_listed_once_for_all_that_are_missing():
    variables = Variables({f"v{number}": "x" for number in range(1000)})
    asked = " ".join(f"${{w{number}}}" for number in range(100))
    with pytest.raises(ConfigError) as caught:
        DispatchConfig.from_dict(dict.fromkeys(PLACES, asked), variables)
    assert len(caught.value.findings) == 3 * MAX_NAMED
    assert variables.seen == 1


@pytest.mark.parametrize("text", ["x" * 10_001, "${v}" * 2_500, "${v}" * 100_000, "${v}" + "y" * 9_999])
def test_a_value_is_no_longer_than_any_honest_one_once_it_is_filled_in(text):
    with pytest.raises(ConfigError, match="10,000 characters at most"):
        DispatchConfig.from_dict({**PLACES, "Region": text}, {"v": "x" * 1_000})


@pytest.mark.parametrize("extra", [{"config": PLACES, **MANY}, {"config_url": "gs://x/y", **MANY}])
def test_an_extra_with_many_keys_beside_its_document_names_few(extra):
    with pytest.raises(ConfigError) as caught:
        ConnectionExtra("x", extra).config(None, None)
    assert len(str(caught.value)) < 3000
    assert " more" in str(caught.value)


def test_an_existing_connection_with_many_keys_names_few():
    existing = json.dumps({"conn_type": "bqdispatch", "extra": MANY})
    assert len(updated_connection(existing, {"config": PLACES}).changes) == MAX_NAMED + 1
    beside = json.dumps({"conn_type": "bqdispatch", "extra": {**MANY, "config": PLACES}})
    with pytest.raises(ValueError, match=r" more beside the configuration") as caught:
        updated_connection(beside, {"config": PLACES})
    assert len(str(caught.value)) < 3000
