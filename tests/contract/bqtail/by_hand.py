"""The part of a dispatcher, played by hand against the stand-in BqTail."""

from datetime import UTC, datetime

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
ONE_WINDOW = 60
UNTIL_LISTED = ONE_WINDOW + 7  # BqTail lists no sooner, however soon a window is fired
TASKS, TRIGGER = "dispatch", "xx_bqtail"


class DispatcherByHand:
    def __init__(self, storage):
        self.tasks, self.trigger = storage.bucket(TASKS), storage.bucket(TRIGGER)

    def waiting(self, ending=""):
        return [b.name.removeprefix("Tasks/") for b in self.tasks.list_blobs() if b.name.endswith(ending)]

    def arrived(self):
        return [b.name for b in self.trigger.list_blobs() if not b.name.startswith("data/")]

    def read(self, name):
        return self.tasks.blob(f"Tasks/{name}").download_as_bytes()

    def copy(self, name, target):
        self.tasks.copy_blob(self.tasks.blob(f"Tasks/{name}"), self.trigger, target)

    def drop(self, name):
        self.tasks.delete_blob(f"Tasks/{name}")

    def fire(self, name):
        self.copy(name, f"_batch_/{name}")

    def move(self, name):
        self.copy(name, f"_bqjob_/2026-03-01_12/{name}.json")
        self.drop(name)

    def move_all_until_done(self, bqtail):
        """Move every trace as it appears, until none is left."""
        while traces := self.waiting("--dispatch"):
            for trace in traces:
                self.move(trace)
            bqtail.step()


def only(items):
    (item,) = items
    return item


def why(account):
    return only(account.problems).why


def traces_of_a_chain(bqtail, hand, dest):
    bqtail.put_file(dest)
    names = []
    while traces := hand.waiting("--dispatch"):
        names += traces
        hand.move(only(traces))
        bqtail.step()
    return [name.replace(only(bqtail.account().chains).event_id, "ID") for name in names]
