"""A set-up in which much goes on: a week of history, and events that wait for many reasons."""

import json
import math
import random
from collections import Counter
from datetime import UTC, datetime

from world import FOLDER, JOURNAL, TASKS, World

from bqdispatch_provider.core.history import SPAN, Figures, Hour, span_of

DAG = "bqdispatch"
SHOP, MEDIA = "acme-shop", "acme-media"
LIMITS = {"MaxConcurrentSQL": 5, "MaxConcurrentJobs": 4}
SHARES = {SHOP: 0.7, MEDIA: 0.3}
HOURS = 7 * 24


def document():
    """Return the configuration; runs are short, so that there are more of them."""
    return {**World.document(**LIMITS), "ProjectID": SHOP, "TimeToLiveInMin": 0.2}


def fill(world):
    """Put a week of history and what waits into the stand-in."""
    now = datetime.fromtimestamp(world.control.now(), UTC)
    world.client.create_bucket("acme_shop_bqtail")
    _seed_history(world, now)
    world.traces(4, "load", state="RUNNING", project=SHOP, dest="acme-shop.sales.orders", age=700)
    world.traces(9, "load", project=SHOP, dest="acme-shop.sales.returns", age=420)
    world.traces(3, "query", state="RUNNING", project=SHOP, dest="acme-shop.sales.totals", age=240)
    world.traces(2, "copy", state="PENDING", project=MEDIA, dest="acme-media.web.clicks", age=150)
    world.trace("load", state=None, project=MEDIA, dest="acme-media.web.sessions", age=900)
    world.trace(
        "query", state="RUNNING", project=MEDIA, dest="acme-media.web.<script>document.title=1<_script>", age=300
    )
    world.window(dest="acme-shop.sales.orders", due=-1800, age=30)
    held = world.trace("load", project=MEDIA, dest="acme-media.web.visits", age=1500)
    blob = world.client.bucket(TASKS).blob(FOLDER + held)
    blob.temporary_hold = True
    blob.patch()
    world.put(f"proj:{SHOP}:US/acme-shop.sales.refunds--x_00001_load--dispatch.json", age=100_000)


def _seed_history(world, now):
    chance = random.Random(7)
    hours = {}
    last = span_of(now) + SPAN  # it takes Airflow some minutes to start
    for number in range(HOURS * 12):
        at = last - number * SPAN
        hour = hours.setdefault(at.replace(minute=0), Hour())
        hour.add(at, _figures(at, chance), DAG)
    world.control.seed_objects(
        JOURNAL,
        [
            {"name": f"journal/history/{at:%Y-%m-%d/%H}.json", "content": json.dumps(hour.to_dict())}
            for at, hour in hours.items()
        ],
    )


def _figures(at, chance):
    """Return the figures of five minutes: busier by day, and now and then a burst that is throttled."""
    day = 0.55 + 0.45 * math.sin((at.hour + at.minute / 60 - 8) / 24 * 2 * math.pi)
    burst = 1.6 if at.hour % 6 == 2 and at.minute < 30 else 1.0
    figures = Figures(seen=at, late=int(chance.random() < 0.02))
    for project, share in SHARES.items():
        busy = share * day * burst
        mine = Figures(
            Counter(
                sql=round(busy * chance.uniform(30, 40)),
                jobs=round(busy * chance.uniform(45, 60)),
                windows=round(busy * chance.uniform(4, 9)),
            ),
            seen=figures.seen,
            states={
                "Running": Counter(jobs=round(4 * busy + chance.random()), sql=round(3 * busy + chance.random())),
                "Pending": Counter(jobs=round(2 * busy + chance.random()), windows=round(4 * busy)),
                "Throttled": Counter(jobs=round(12 * busy * chance.uniform(0.6, 1)) if burst > 1 else 0),
            },
        )
        mine.waiting = Counter({"job running": round(2 * busy), "limit reached": mine.states["Throttled"]["jobs"] // 2})
        figures.dispatched.update(mine.dispatched)
        figures.waiting.update(mine.waiting)
        for state, counter in mine.states.items():
            figures.states.setdefault(state, Counter()).update(counter)
        figures.projects[project] = mine
    events = figures.dispatched.total()
    figures.lags = Counter({1: round(events * 0.35), 2: round(events * 0.4), 3: round(events * 0.18), 5: 3})
    figures.lags[7 if burst > 1 else 4] += round(events * 0.07)
    return figures
