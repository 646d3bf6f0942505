"""A stand-in BqTail for each test, and the bucket of its dispatcher."""

import pytest
import requests
from by_hand import NOON, TASKS, TRIGGER, DispatcherByHand
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client

from bqdispatch_provider.testing.bqtail import BqTailSettings, StandInBqTail


@pytest.fixture
def control(control):
    # The hand that plays the dispatcher is faster than any dispatcher.
    control.set_name_limit(False)
    control.set_clock(NOON + 5)
    for bucket in (TASKS, TRIGGER):
        control.seed_objects(bucket, [])
    return control


@pytest.fixture
def storage(standin):
    return Client(project="xx", credentials=AnonymousCredentials(), client_options={"api_endpoint": standin.url})


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def deploy(standin, control, storage, session):
    """A new BqTail and the dispatcher's part in it, to be played by hand."""

    def deploy(**settings):
        settings = BqTailSettings(f"gs://{TASKS}/Tasks/", TRIGGER, "xx", **settings)
        return StandInBqTail(storage, session, standin.url, settings), DispatcherByHand(storage)

    return deploy
