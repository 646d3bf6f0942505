"""Windows of one name: claims, firings, late events, and the verdict on a window that has come back.

Windows are numbered in the order in which BqTail makes them; the number is the generation, and tells the body. Of a
claim's generations only the present one matters, so a dispatcher knows it, or does not any more.
"""

from typing import NamedTuple

from kernel import Step, put

GONE = 2
LEFT = 3
"""Owner of an intent that nobody withdraws: its firing was begun, and not finished."""

IDLE = ("idle", 0, 0, frozenset(), ())
NONE = frozenset()

# How far the load of a firing is. Its trace lies in the task folder from before it is submitted until it is moved.
RUNNING, OK, FAILED, MOVED_OK, MOVED_FAILED, DONE_OK, DONE_FAILED, AGAIN, RUNNING_AGAIN, OK_AGAIN = range(1, 11)
IN_FOLDER = {RUNNING, OK, FAILED}
IN_TRIGGER = {MOVED_OK, MOVED_FAILED}
WENT_WELL = {OK, MOVED_OK, DONE_OK}
OVER = {0, DONE_OK, DONE_FAILED, OK_AGAIN}

PENDING, SAW, MADE, DONE = "pending", "saw", "made", "done"

_OF_A_GENERATION = ("copy", "fence", "delete claim")
"""Calls that name a generation of a claim."""


class World(NamedTuple):
    """What there is.

    :param window: number of the window that lies there; 0 for none.
    :param bodies: by window, the file whose event made it.
    :param locations: the folders that have a ``.loc`` object.
    :param claims: by window, 1 + who claimed it; 0 for no claim.
    :param fired: by window, whether the ledger says that it was fired.
    :param gone: by window, 1 once the ledger says that its copy was consumed, 2 ten minutes later.
    :param copies: by window, whether its copy lies in the trigger bucket.
    :param kept: by window, whether its consumed copy can still be seen.
    :param landed: by window, how often a copy of it came to lie there.
    :param taken: by window, 1 once BqTail has carried out the copy, 2 when it was dropped, which another instance of it
        that has read the copy too may not do.
    :param loads: by window, how far its load is.
    :param uris: by window, the files of its load.
    :param reloads: by window, whether its load was tried again.
    :param cleans: by window, the locations that BqTail is still to delete.
    :param loaded: by file, how often.
    :param events: by file, how far its event is.
    :param repeats: how many events may still come again.
    :param intents: of each its owner, and the number of the window that it names.
    :param undecided: numbers of the windows that a report names until somebody acts.
    :param named: folders that a report names.
    :param removed: files that BqTail has deleted after their load.
    :param doubted: numbers of the windows that were delivered although nobody could say if they had been before.
    :param lost: whether a window is gone that was neither claimed nor named, and whose file was not loaded; or one was
        said to have been dropped that was never delivered.
    :param recent: whether a window was deleted less than a second ago.
    :param late: calls on their way whose senders no longer wait for them.
    """

    window: int
    bodies: tuple
    locations: frozenset
    claims: tuple
    fired: tuple
    gone: tuple
    copies: tuple
    kept: tuple
    landed: tuple
    taken: tuple
    loads: tuple
    uris: tuple
    reloads: tuple
    cleans: tuple
    loaded: tuple
    events: tuple
    repeats: int
    intents: frozenset
    undecided: frozenset
    named: frozenset
    removed: frozenset
    doubted: frozenset
    lost: bool
    recent: bool
    late: frozenset
    dispatchers: tuple
    deaths: int
    losses: int
    denials: int


_BY_WINDOW = (
    "bodies",
    "claims",
    "fired",
    "gone",
    "copies",
    "kept",
    "landed",
    "taken",
    "loads",
    "uris",
    "reloads",
    "cleans",
)


class Windows:
    """The model.

    :param files: by file, its folder. All files are there from the start; their events come when they come.
    :param many: whether a window has many folders (``Batch.MultiPath``).
    :param keeps: whether the trigger bucket keeps what is deleted.
    :param on_doubt: ``deliver`` or ``quarantine``.
    :param repeats: how many events may come twice.
    :param fails: whether loads may fail, and be tried again.
    :param drops: whether BqTail may drop a fired window without loading it.
    :param deletes: whether BqTail deletes files that it has loaded.
    :param cleans: whether the ledger is cleaned up.
    :param world: what the world does that no dispatcher can help: ``again`` (a late event writes the ``.loc`` of a
        folder that was loaded anew, beside a window that has come back), ``busy`` (BqTail takes a 429 for "it exists"),
        ``swallowed`` (a ``.loc`` object is not written); and ``restarts``, which one can (a failed load is submitted
        by another event ID).
    :param denials: how many calls the service denies whose preconditions hold.
    :param without: guards that are taken out; see the tests.
    """

    def __init__(
        self,
        files="A",
        many=False,
        keeps=True,
        on_doubt="deliver",
        repeats=0,
        fails=True,
        drops=True,
        deletes=False,
        cleans=False,
        dispatchers=2,
        deaths=1,
        losses=0,
        denials=0,
        world=(),
        without=(),
    ):
        self.files, self.many, self.keeps, self.on_doubt = files, many, keeps, on_doubt
        self.repeats, self.fails, self.drops, self.deletes, self.cleans = repeats, fails, drops, deletes, cleans
        self.dispatchers, self.deaths, self.losses, self.denials = dispatchers, deaths, losses, denials
        self.world, self.without = frozenset(world), frozenset(without)

    def start(self):
        empty = dict.fromkeys(_BY_WINDOW, ())
        return World(
            window=0,
            locations=NONE,
            loaded=(0,) * len(self.files),
            events=(PENDING,) * len(self.files),
            repeats=self.repeats,
            intents=NONE,
            undecided=NONE,
            named=NONE,
            removed=NONE,
            doubted=NONE,
            lost=False,
            recent=False,
            late=NONE,
            dispatchers=(IDLE,) * self.dispatchers,
            deaths=self.deaths,
            losses=self.losses,
            denials=self.denials,
            **empty,
        )

    def knows(self, w, which):
        return w.dispatchers[which]

    def canonical(self, w):
        """Forget what nobody asks for any more."""
        late, claims, gone = w.late, w.claims, w.gone
        if late:
            late = frozenset(call for call in late if self._matters(w, call))
        if any(owner not in (0, 1 + GONE) for owner in claims):
            claims = tuple(
                owner if owner in (0, 1 + GONE) or self._asks(w, owner - 1, number) else 1 + GONE
                for number, owner in enumerate(claims, 1)
            )
        if any(gone) and any(w.loads):
            gone = tuple(0 if load else gone for gone, load in zip(gone, w.loads, strict=True))
        dispatchers = w.dispatchers
        if swapped := len(dispatchers) > 1 and hash(dispatchers[0]) > hash(dispatchers[1]):
            dispatchers = dispatchers[::-1]
            turned = (1, 0, GONE, LEFT)
            claims = tuple(owner and 1 + turned[owner - 1] for owner in claims)
            late = frozenset((name, turned[sender], *more) for name, sender, *more in late)
            w = w._replace(intents=frozenset((turned[owner], number) for owner, number in w.intents))
        if swapped or late is not w.late or claims is not w.claims or gone is not w.gone:
            w = w._replace(late=late, claims=claims, gone=gone, dispatchers=dispatchers)
        return w, swapped

    def _asks(self, w, which, number):
        """Whether a dispatcher is about to ask if a claim is its own."""
        at, mine, *_ = w.dispatchers[which]
        return at in ("claim", "whose") and mine == number

    def _matters(self, w, call):
        """Whether a late call may still change something."""
        name, _, number, *_ = call
        if name == "claim":
            return w.window == number and ("claim" in self.without or not w.claims[number - 1])
        if name == "delete window":
            return w.window == number or "generation" in self.without
        if name == "write fired":
            return not w.fired[number - 1]
        if name in ("copy", "fence", "delete claim"):
            return call[3] or "source" in self.without
        if name == "write left":
            return (LEFT, number) not in w.intents
        return name != "write intent" or (GONE, number) not in w.intents

    def wrong(self, w):
        if w.lost:
            return "a window is gone, or is said to be dropped, that was never delivered"
        for number, times in enumerate(w.landed, 1):
            if times > 1 and not (not self.keeps and self.on_doubt == "deliver" and number in w.doubted):
                return f"window {number} was delivered twice"
        if any(times > 1 for times in w.loaded):
            return "a file was loaded twice"
        return ""

    def settled(self, w):
        return (
            not w.window
            and not w.intents
            and not any(w.copies)
            and all(event == DONE for event in w.events)
            and all(load in OVER for load in w.loads)
            and not any(w.cleans)
            and all(each[0] == "idle" for each in w.dispatchers)
            and all(fired or not claim for claim, fired in zip(w.claims, w.fired, strict=True))
            and all(self._accounted(w, file) for file in range(len(self.files)))
        )

    def _accounted(self, w, file):
        """Whether a file was loaded, or is named: by BqTail where its load has failed, otherwise by a dispatcher."""
        return (
            w.loaded[file]
            or self.files[file] in w.named
            or any(load == DONE_FAILED and file in uris for load, uris in zip(w.loads, w.uris, strict=True))
        )

    def steps(self, w):
        yield from self._events(w)
        yield from self._firings(w)
        for call in w.late:
            done, told = self._do(w._replace(late=w.late - {call}), call)
            if told == "ok":
                yield Step("late", call[0], "", done, hoped=False)
        if w.recent:
            yield Step("time", "a second passes", "", w._replace(recent=False))
        for which, me in enumerate(w.dispatchers):
            yield from getattr(self, "_" + me[0].replace(" ", "_"))(w, which, me)
            if w.deaths and me[0] != "idle":
                yield from self._die(w, which, me)

    # BqTail: events of files

    def _events(self, w):
        for file, event in enumerate(w.events):
            folder = self.files[file]
            if event == PENDING:
                yield self._event(w, file)
            elif event in (SAW, MADE):
                done = w._replace(events=put(w.events, file, DONE))
                if len(w.bodies) > 1 and "again" not in self.world and self._is_known(w, folder):
                    yield Step("BqTail", f"has written .loc of {folder} before", "", done)
                else:
                    yield Step("BqTail", f"writes .loc of {folder}", "", self._located(done, folder))
                if "swallowed" in self.world:
                    yield Step("BqTail", f"fails to write .loc of {folder}", "", done, hoped=False)
            elif w.repeats:
                again = w._replace(events=put(w.events, file, PENDING), repeats=w.repeats - 1)
                yield Step("fate", f"event of file {file} comes again", "", again, hoped=False)

    def _event(self, w, file):
        folder = self.files[file]
        if file in w.removed:
            done = w._replace(events=put(w.events, file, DONE))
            return Step("BqTail", f"event of file {file}, which is gone", "", done)
        if w.window or (w.recent and "busy" in self.world):
            after = SAW if self.many else DONE
            what = f"event of file {file} in {folder} finds the window"
            return Step("BqTail", what, "", w._replace(events=put(w.events, file, after)))
        made = self._made(w, file)._replace(events=put(w.events, file, MADE if self.many else DONE))
        return Step("BqTail", f"event of file {file} in {folder} makes window {made.window}", "", made)

    @staticmethod
    def _made(w, file):
        """A window whose source is that file, where there is none."""
        more = {name: (*getattr(w, name), 0) for name in _BY_WINDOW}
        more["bodies"], more["uris"], more["cleans"] = (*w.bodies, file), (*w.uris, NONE), (*w.cleans, NONE)
        return w._replace(window=len(w.bodies) + 1, **more)

    def _is_known(self, w, folder):
        """Whether files of a folder have been loaded, or are about to be."""
        return any(folder in self._folders(uris) for uris in w.uris)

    def _located(self, w, folder):
        return w if folder in w.locations else w._replace(locations=w.locations | {folder})

    def _folders(self, files):
        return frozenset(self.files[file] for file in files)

    # BqTail: what was fired

    def _firings(self, w):
        for at in range(len(w.bodies)):
            number = at + 1
            load = w.loads[at]
            if w.copies[at] and not w.taken[at]:
                yield self._submits(w, at)
                if self.drops:
                    yield Step("BqTail", f"drops window {number}", "", w._replace(taken=put(w.taken, at, 2)))
            # Another instance that has read the copy may still be at it, but not ten minutes after its end.
            if w.taken[at] == 2 and w.gone[at] < 2:
                yield self._submits(w, at)._replace(hoped=False)
            if w.copies[at] and w.taken[at]:
                kept = w._replace(copies=put(w.copies, at, 0), kept=put(w.kept, at, 1) if self.keeps else w.kept)
                yield Step("BqTail", f"deletes the copy of window {number}", "", kept)
            if w.gone[at] == 1 and not w.copies[at]:
                yield Step("time", f"window {number} is gone for ten minutes", "", w._replace(gone=put(w.gone, at, 2)))
            yield from self._load(w, at, load)

    def _submits(self, w, at):
        folders = {self.files[w.bodies[at]]} | (w.locations if self.many else set())
        uris = frozenset(f for f, folder in enumerate(self.files) if folder in folders and f not in w.removed)
        after = w._replace(taken=put(w.taken, at, 1))
        if uris:
            after = after._replace(loads=put(w.loads, at, RUNNING), uris=put(w.uris, at, uris))
            after = after._replace(cleans=put(w.cleans, at, w.locations if self.many else NONE))
        return Step("BqTail", f"submits the load of window {at + 1}: {sorted(folders)}", "", after)

    def _load(self, w, at, load):
        def become(state, what, **more):
            return Step("BqTail", f"{what} {at + 1}", "", w._replace(loads=put(w.loads, at, state), **more))

        loaded = tuple(times + (file in w.uris[at]) for file, times in enumerate(w.loaded))
        if load == RUNNING:
            yield become(OK, "succeeds in load", loaded=loaded)
            if self.fails:
                yield become(FAILED, "fails in load", cleans=w.cleans)
        elif load == OK and not self.fails:
            removed = w.removed | w.uris[at] if self.deletes else w.removed
            yield become(DONE_OK, "goes on after load", removed=removed)
        elif load in (OK, FAILED):
            # By a dispatcher, as the model of traces shows: here it is one step.
            yield become(MOVED_OK if load == OK else MOVED_FAILED, "is given the trace of load")
        elif load == MOVED_OK:
            removed = w.removed | w.uris[at] if self.deletes else w.removed
            yield become(DONE_OK, "goes on after load", removed=removed)
        elif load == MOVED_FAILED:
            yield become(DONE_FAILED, "gives up load", cleans=put(w.cleans, at, NONE))
            if not w.reloads[at]:
                yield become(RUNNING, "reloads", reloads=put(w.reloads, at, 1))
                if "restarts" in self.world:
                    yield become(AGAIN, "restarts by another event ID load", reloads=put(w.reloads, at, 1))
        elif load == AGAIN:
            yield become(RUNNING_AGAIN, "submits again load")
        elif load == RUNNING_AGAIN:
            yield become(OK_AGAIN, "succeeds in load", loaded=loaded)
        elif load == DONE_OK and w.cleans[at]:
            for folder in w.cleans[at]:
                left = self._unlocated(w._replace(cleans=put(w.cleans, at, w.cleans[at] - {folder})), folder)
                yield Step("BqTail", f"deletes .loc of {folder}", "", left)

    def _unlocated(self, w, folder):
        """Delete a ``.loc``: who knew it knows none that is there any more, also if it is written again."""
        dispatchers = tuple(put(each, 3, each[3] - {folder}) if each[3] else each for each in w.dispatchers)
        return w._replace(locations=w.locations - {folder}, dispatchers=dispatchers)

    # What the calls of dispatchers do

    def _do(self, w, call):
        """Carry out a call: the world after it, and what is answered."""
        name, sender, number, *more = call
        return getattr(self, "_do_" + name.replace(" ", "_"))(w, sender, number, *more)

    def _do_write_intent(self, w, sender, number):
        return w._replace(intents=w.intents | {(sender, number)}), "ok"

    def _do_write_left(self, w, sender, number):
        return w._replace(intents=w.intents | {(LEFT, number)}), "ok"

    def _do_end_others(self, w, sender, number):
        if "left" in self.without:
            return w._replace(intents=w.intents - {(GONE, number)}), "ok"
        return w._replace(intents=frozenset(each for each in w.intents if each[1] != number or each[0] == LEFT)), "ok"

    def _do_claim(self, w, sender, number):
        at = number - 1
        if w.window != number:
            return w, "refused"
        if w.claims[at]:
            if "claim" not in self.without:
                return w, "refused"
            w = self._fenced(w, number)
        return w._replace(claims=put(w.claims, at, 1 + sender)), "ok"

    def _fenced(self, w, number):
        """Give a claim another generation: nobody knows it any more."""
        dispatchers = tuple(put(each, 2, 0) if each[1] == number and each[2] else each for each in w.dispatchers)
        late = w.late
        if "source" not in self.without:
            late = frozenset(call for call in late if not (call[0] in _OF_A_GENERATION and call[2] == number))
        return w._replace(dispatchers=dispatchers, late=late)

    def _do_fence(self, w, sender, number, knows):
        if not knows or not w.claims[number - 1]:
            return w, "refused"
        return self._fenced(w, number)._replace(claims=put(w.claims, number - 1, 1 + sender)), "ok"

    def _do_delete_claim(self, w, sender, number, knows):
        if not knows or not w.claims[number - 1]:
            return w, "refused"
        lost = w.lost or w.window != number
        return self._fenced(w, number)._replace(claims=put(w.claims, number - 1, 0), lost=lost), "ok"

    def _do_copy(self, w, sender, number, knows):
        at = number - 1
        if not w.claims[at] or not (knows or "source" in self.without):
            return w, "refused"
        if w.copies[at]:
            return w, "refused"
        return w._replace(copies=put(w.copies, at, 1), landed=put(w.landed, at, min(w.landed[at] + 1, 2))), "ok"

    def _do_write_fired(self, w, sender, number):
        if not w.claims[number - 1] or w.fired[number - 1]:
            return w, "refused"
        return w._replace(fired=put(w.fired, number - 1, 1)), "ok"

    def _do_delete_window(self, w, sender, number):
        if not w.window or (w.window != number and "generation" not in self.without):
            return w, "refused"
        at = w.window - 1
        loaded = w.loaded[w.bodies[at]] or any(w.bodies[at] in uris for uris in w.uris)
        lost = w.lost or not (w.claims[at] or w.fired[at] or w.window in w.undecided or loaded)
        return w._replace(window=0, lost=lost, recent="busy" in self.world), "ok"

    def _do_make_window(self, w, sender, number, folder):
        there = [file for file, its in enumerate(self.files) if its == folder and file not in w.removed]
        if w.window or not there:
            return w, "refused"
        return self._made(w, there[0]), "ok"

    def _do_write_gone(self, w, sender, number):
        if w.gone[number - 1]:
            return w, "refused"
        return w._replace(gone=put(w.gone, number - 1, 1)), "ok"

    def _do_delete_location(self, w, sender, number, folder, knows):
        return (self._unlocated(w, folder), "ok") if knows and folder in w.locations else (w, "refused")

    def _do_end_intent(self, w, sender, number):
        return w._replace(intents=frozenset(each for each in w.intents if each[1] != number)), "ok"

    def _do_withdraw(self, w, sender, number):
        return w._replace(intents=w.intents - {(sender, number)}), "ok"

    def _do_write_undecided(self, w, sender, number):
        named = w.named | {self.files[w.bodies[number - 1]]}
        return w._replace(undecided=w.undecided | {number}, named=named), "ok"

    # How a dispatcher makes them

    def _at(self, w, which, at, number=0, knows=0, locations=NONE, extra=()):
        me = IDLE if at == "idle" else (at, number, knows, locations, extra)
        return w._replace(dispatchers=put(w.dispatchers, which, me))

    def _go(self, w, which, me, at, **more):
        """Go on as before, but there and with that."""
        if more:
            fields = {"number": me[1], "knows": me[2], "locations": me[3], "extra": me[4]} | more
            return self._at(w, which, at, **fields)
        return self._at(w, which, at, *me[1:])

    def _look(self, which, what, result, state):
        return Step(f"D{which}", what, result, state)

    def _denied(self, w, which, what, at, **more):
        """A call that the service denies, now, whatever its preconditions."""
        if w.denials:
            gone = w._replace(denials=w.denials - 1)
            yield Step(
                f"D{which}", what, "denied", self._go(gone, which, w.dispatchers[which], at, **more), hoped=False
            )

    def _call(self, w, which, call, ok, refused, lost, denied="idle", **more):
        """A call whose answer comes, or is lost, and then it is carried out later, or never.

        :param ok: where the dispatcher goes on; ``refused``, ``lost`` and ``denied`` likewise.
        """
        yield from self._denied(w, which, call[0], denied)
        after, result = self._do(w, call)
        me = after.dispatchers[which]
        yield Step(f"D{which}", call[0], result, self._go(after, which, me, ok if result == "ok" else refused, **more))
        if w.losses:
            gone = w._replace(late=w.late | {call}, losses=w.losses - 1)
            yield Step(f"D{which}", call[0], "lost", self._go(gone, which, me, lost, **more), hoped=False)

    def _die(self, w, which, me):
        claims = tuple(1 + GONE if owner == 1 + which else owner for owner in w.claims)
        late = frozenset((name, GONE if sender == which else sender, *more) for name, sender, *more in w.late)
        intents = frozenset((GONE if owner == which else owner, number) for owner, number in w.intents)
        dead = self._at(w, which, "idle")._replace(claims=claims, intents=intents, late=late, deaths=w.deaths - 1)
        yield Step("fate", f"D{which} dies", "", dead, hoped=False)
        at, number, knows, *_ = me
        calls = {
            "claim": ("claim", GONE, number),
            "copy": ("copy", GONE, number, knows),
            "first copy": ("copy", GONE, number, knows),
            "give up": ("delete claim", GONE, number, knows),
            "take over": ("fence", GONE, number, knows),
            "delete window": ("delete window", GONE, number),
            "delete first": ("delete window", GONE, number),
            "make window": ("make window", GONE, number, me[4]),
        }
        if at in calls:
            sent = dead._replace(late=dead.late | {calls[at]})
            yield Step("fate", f"D{which} dies, its {calls[at][0]} is on its way", "", sent, hoped=False)

    # Looking

    def _idle(self, w, which, me):
        """A look, for a window or for an intent: real cycles do it for many side by side."""
        if w.window or w.locations:
            if "ledger after" in self.without:
                extra = tuple(zip(w.claims, w.fired, w.gone, strict=True))
                yield self._look(which, "list ledger", "", self._at(w, which, "ledger first", extra=extra))
            else:
                at = self._at(w, which, "listed", w.window, locations=w.locations)
                yield self._look(which, "list", f"window {w.window}" if w.window else "locations", at)
        if self._writes_intents:
            for number in {number for _, number in w.intents}:
                at = self._at(w, which, "opened", number, extra=w.window == number)
                yield self._look(which, "list", f"intent of window {number}", at)
                owners = {owner for owner, its in w.intents if its == number}
                if len(owners) > 1 and (LEFT in owners or ("left" in self.without and GONE in owners)):
                    at = self._at(w, which, "end others", number)
                    yield self._look(which, "list", f"intents of window {number}", at)

    @property
    def _writes_intents(self):
        return "intent" not in self.without

    def _ledger_first(self, w, which, me):
        """Without the guard: what the ledger was before the folder was listed."""
        known = (*me[4], *((0, 0, 0),) * (len(w.bodies) - len(me[4])))
        me = ("listed", w.window, 0, w.locations, ())
        yield from self._decide(w, which, me, known, 0, "list")

    def _listed(self, w, which, me):
        yield from self._decide(w, which, me, tuple(zip(w.claims, w.fired, w.gone, strict=True)), 1, "list ledger")

    def _opened(self, w, which, me):
        """Of a firing that is open: it is taken over, or followed, or was never begun."""
        _, number, _, _, lies = me
        at = number - 1

        def to(result, *given, **more):
            return self._look(which, "list ledger", result, self._at(w, which, *given, **more))

        yield to("wait", "idle")
        if w.claims[at] and not w.fired[at]:
            yield to(f"claim {number} is old", "take", number, 1)
            if w.loads[at]:
                # Only what was delivered has a load: no doubt is left to settle.
                yield to(f"load {number} is seen", "fired", number)
        if w.fired[at] or (w.claims[at] and "fired ends" in self.without):
            yield to(f"firing {number} is open", "settle", number, extra=w.gone[at])
        elif not w.claims[at] and not lies:
            yield to(f"{number} was never claimed", "end intent", number)
        if self.cleans:
            yield from self._cleans(w, which, {number} if w.claims[at] or w.fired[at] else set(), number, to)

    def _decide(self, w, which, me, ledger, knows, what):
        """What a look at a window leads to."""
        _, number, _, locations, _ = me
        entries = {at for at, (claim, fired, _) in enumerate(ledger, 1) if claim or fired}
        unfired = {at for at in entries if not ledger[at - 1][1]}
        earlier = tuple((at, ledger[at - 1][2]) for at in sorted(entries))
        many = ("many",) if locations else ()

        def to(result, *given, **more):
            return self._look(which, what, result, self._at(w, which, *given, **more))

        yield to("wait", "idle")
        for at in unfired:
            yield to(f"claim {at} is old", "take", at, knows)
        if number in w.undecided:
            yield to("undecided", "delete window", number)
        elif number in entries - unfired:
            yield to(f"window {number} was fired", "delete window", number)
        elif number and not entries:
            yield to(f"window {number} is due", "write intent", number, extra=many)
        elif number and number not in entries and (not unfired or "unfired" in self.without):
            if "evidence" in self.without:
                yield to(f"window {number} is back", "write intent", number, extra=many)
            elif "drop" in self.without:
                yield to(f"window {number} is back", "delete window", number)
            else:
                seen = locations if "locations last" in self.without else NONE
                yield to(f"window {number} is back", "copies", number, 0, seen, (earlier, NONE, ()))
        elif not number and locations and not entries:
            yield to("locations are left", "name", 0, 0, locations)
        elif not number and locations and not unfired:
            yield to("locations are left", "copies", 0, 0, locations, (earlier, NONE, ()))
        if self.cleans:
            yield from self._cleans(w, which, entries, number, to)

    def _cleans(self, w, which, entries, number, to):
        """Eight days have passed, for those whose firing BqTail is through with; no event comes any more."""
        if not all(event == DONE for event in w.events):
            return
        for at in entries:
            running = w.loads[at - 1] not in OVER or (w.taken[at - 1] == 2 and w.gone[at - 1] < 2)
            if w.copies[at - 1] or running:
                continue
            if "clean" in self.without or (
                w.fired[at - 1] and not number and all(number != at for _, number in w.intents)
            ):
                yield to(f"{at} is eight days old", "clean claim", at)

    def _clean_claim(self, w, which, me):
        at = me[1] - 1
        after = w._replace(claims=put(w.claims, at, 0), kept=put(w.kept, at, 0), repeats=0)
        yield self._look(which, "delete claim", "ok", self._go(after, which, me, "clean fired"))

    def _clean_fired(self, w, which, me):
        at = me[1] - 1
        after = w._replace(fired=put(w.fired, at, 0), kept=put(w.kept, at, 0), repeats=0)
        yield self._look(which, "delete fired", "ok", self._go(after, which, me, "idle"))

    # Firing

    def _write_intent(self, w, which, me):
        if "intent" in self.without:
            yield self._look(which, "go on", "", self._go(w, which, me, "claim"))
            return
        yield from self._call(w, which, ("write intent", which, me[1]), "claim", "idle", "idle")

    def _claim(self, w, which, me):
        first = "delete first" if me[4] else "first copy"
        if "window after claim" in self.without:
            first = "copy"
            if w.window == me[1] and me[4]:
                after, _ = self._do(w, ("delete window", which, me[1]))
                yield self._look(which, "delete window", "ok", self._go(after, which, me, "claim"))
        yield from self._call(w, which, ("claim", which, me[1]), first, "whose", "whose", "disowned", knows=1)

    def _whose(self, w, which, me):
        """A claim that was refused, or whose answer is lost, may be one's own."""
        mine = w.claims[me[1] - 1] == 1 + which
        if mine:
            first = "delete first" if me[4] else "first copy"
            yield self._look(which, "look at claim", "mine", self._go(w, which, me, first, knows=1))
        else:
            yield self._look(which, "look at claim", "not mine", self._at(w, which, "disowned", me[1]))

    def _disowned(self, w, which, me):
        """Somebody else's, who has written it down too: one's own intent is withdrawn."""
        if "intent" in self.without:
            yield self._look(which, "go on", "", self._at(w, which, "idle"))
        else:
            # What it writes next is another object, which a withdrawal that comes late does not name.
            left = w._replace(intents=w.intents - {(which, me[1])} | {(GONE, me[1])})
            yield self._look(
                which, "withdraw", "ok", self._at(self._do(w, ("withdraw", which, me[1]))[0], which, "idle")
            )
            yield from self._denied(left, which, "withdraw", "idle")
            if w.losses:
                gone = self._at(left._replace(losses=w.losses - 1), which, "idle")
                yield Step(f"D{which}", "withdraw", "lost", gone, hoped=False)

    def _delete_first(self, w, which, me):
        yield from self._call(w, which, ("delete window", which, me[1]), "copy", "copy", "copy", "copy")

    def _first_copy(self, w, which, me):
        """The copy of a window of one folder that was claimed just now: if that is denied, the claim is given up."""
        yield from self._copy(w, which, me, denied="give up")

    def _give_up(self, w, which, me):
        yield from self._call(w, which, ("delete claim", which, me[1], me[2]), "disowned", "idle", "idle")

    def _leave(self, w, which, me):
        """Write anew, for good, what was begun and not finished, before one's own intent is withdrawn."""
        yield from self._call(w, which, ("write left", which, me[1]), "disowned", "disowned", "idle")

    def _end_others(self, w, which, me):
        """Beside an intent that nobody withdraws no other is needed."""
        yield from self._call(w, which, ("end others", which, me[1]), "idle", "idle", "idle")

    def _copy(self, w, which, me, denied="leave"):
        if "fired first" in self.without and not w.fired[me[1] - 1]:
            after, result = self._do(w, ("write fired", which, me[1]))
            yield self._look(which, "write fired", result, self._go(after, which, me, "copy"))
            return
        lost = "take over" if "lost" not in self.without else "copy"
        yield from self._call(w, which, ("copy", which, me[1], me[2]), "fired", "refused", lost, denied)

    def _refused(self, w, which, me):
        """Look at both ends: the claim, of which nothing is said where it was taken over, and the copy."""
        there = me[2] and w.copies[me[1] - 1]
        result = "there" if there else "taken over" if not me[2] else "gone"
        after = self._go(w, which, me, "fired") if there else self._at(w, which, "disowned", me[1])
        yield self._look(which, "look at copy", result, after)

    def _take(self, w, which, me):
        """Written down first, by whoever takes over too: the other one may withdraw its intent."""
        if self.without & {"intent", "own intent"}:
            yield from self._take_over(w, which, me)
            return
        yield from self._call(w, which, ("write intent", which, me[1]), "take over", "idle", "idle")

    def _take_over(self, w, which, me):
        if "fence" in self.without:
            yield self._look(which, "go on", "", self._go(w, which, me, "versions"))
            return
        yield from self._denied(w, which, "fence", "idle")
        after, result = self._do(w, ("fence", which, me[1], me[2]))
        fenced = self._go(after, which, me, "versions", knows=1)
        yield Step(f"D{which}", "fence", result, fenced if result == "ok" else self._at(w, which, "disowned", me[1]))
        if w.losses:
            late = w._replace(late=w.late | {("fence", which, me[1], me[2])}, losses=w.losses - 1)
            yield Step(f"D{which}", "fence", "lost", self._at(late, which, "idle"), hoped=False)
            if result == "ok":
                yield Step(f"D{which}", "fence", "lost", fenced._replace(losses=w.losses - 1), hoped=False)

    def _versions(self, w, which, me):
        if "versions" in self.without:
            yield self._look(which, "go on", "", self._go(w, which, me, "copy"))
            return
        if self.many and w.window == me[1]:
            yield from self._call(
                w, which, ("delete window", which, me[1]), "versions", "versions", "versions", "versions"
            )
        elif self.many:
            yield self._look(which, "delete window", "refused", w)
        found = w.copies[me[1] - 1]
        after = self._go(w, which, me, "fired" if found else "deleted")
        yield self._look(which, "list versions", "found" if found else "none", after)

    def _deleted(self, w, which, me):
        number = me[1]
        what = "list deleted versions"
        if w.kept[number - 1]:
            yield self._look(which, what, "found", self._go(w, which, me, "fired"))
        elif self.keeps:
            yield self._look(which, what, "none", self._go(w, which, me, "copy"))
        elif self.on_doubt == "deliver":
            after = w._replace(doubted=w.doubted | {number})
            yield self._look(which, what, "none", self._go(after, which, me, "copy"))
        else:
            after = w._replace(doubted=w.doubted | {number})
            yield self._look(which, what, "none", self._go(after, which, me, "doubtful"))

    def _doubtful(self, w, which, me):
        """``OnDoubt`` says quarantine: it counts as fired, so that it is known should it come again."""
        yield from self._call(w, which, ("write fired", which, me[1]), "aside", "aside", "idle")

    def _aside(self, w, which, me):
        """And it is named: now, or once no load has been seen of what may have been fired."""
        yield from self._denied(w, which, "write undecided", "end intent" if "denied name" in self.without else "idle")
        after, _ = self._do(w, ("write undecided", which, me[1]))
        yield self._look(which, "write undecided", "ok", self._at(after, which, "idle"))

    def _fired(self, w, which, me):
        yield from self._call(w, which, ("write fired", which, me[1]), "idle", "idle", "leave", "leave")

    def _delete_window(self, w, which, me):
        yield from self._call(w, which, ("delete window", which, me[1]), "idle", "idle", "idle")

    # A firing that is open

    def _settle(self, w, which, me):
        there = w.copies[me[1] - 1]
        after = self._at(w, which, "idle") if there else self._go(w, which, me, "settle jobs")
        yield self._look(which, "look at copy", "there" if there else "gone", after)

    def _settle_jobs(self, w, which, me):
        _, number, _, _, gone = me
        if w.loads[number - 1]:
            after, result = self._go(w, which, me, "end intent"), "seen"
        elif number in w.undecided or gone == 2:
            after, result = self._go(w, which, me, "end intent" if number in w.undecided else "dropped"), "none"
        else:
            after, result = self._go(w, which, me, "idle" if gone else "write gone"), "none"
        yield self._look(which, "list jobs", result, after)

    def _dropped(self, w, which, me):
        """Named first, and only then forgotten: BqTail has loaded nothing of it, although it was delivered, if that
        is known.
        """
        then = "end intent" if "denied name" in self.without else "idle"
        yield from self._denied(w, which, "write undecided", then)
        after, _ = self._do(w, ("write undecided", which, me[1]))
        after = after._replace(lost=w.lost or not (w.landed[me[1] - 1] or me[1] in w.doubted))
        yield self._look(which, "write undecided", "ok", self._go(after, which, me, "delete dropped"))

    def _delete_dropped(self, w, which, me):
        yield from self._call(w, which, ("delete window", which, me[1]), "end intent", "end intent", "idle")

    def _end_intent(self, w, which, me):
        yield from self._call(w, which, ("end intent", which, me[1]), "idle", "idle", "idle")

    def _write_gone(self, w, which, me):
        yield from self._call(w, which, ("write gone", which, me[1]), "idle", "idle", "idle")

    # The verdict: what was fired is followed on its way, each look after the one before

    def _copies(self, w, which, me):
        there = any(w.copies[at - 1] for at, _ in me[4][0])
        then = "jobs" if "flow" in self.without else "traces"
        after = self._at(w, which, "idle") if there else self._go(w, which, me, then)
        yield self._look(which, "look at copies", "there" if there else "gone", after)

    def _traces(self, w, which, me):
        earlier, _, jobs = me[4]
        some = any(w.loads[at - 1] in IN_FOLDER for at, _ in earlier)
        # A load that ends after this look, as its job tells, may have written its trace after it, too.
        waits = IN_FOLDER if "ended" in self.without else IN_FOLDER | {0}
        waiting = frozenset(at for at, _ in earlier if w.loads[at - 1] in waits)
        after = self._go(w, which, me, "delivered", extra=(earlier, waiting, jobs))
        yield self._look(which, "list traces", "some" if some else "none", after)

    def _delivered(self, w, which, me):
        earlier, waiting, jobs = me[4]
        there = {at for at, _ in earlier if w.loads[at - 1] in IN_TRIGGER}
        if "restarts seen" not in self.without:
            there |= {at for at, _ in earlier if w.loads[at - 1] == AGAIN}
        waiting |= there
        what, result = "look at delivered traces", "some" if there else "none"
        if "flow" in self.without:
            yield self._weighed(w, which, me, earlier, waiting, jobs, what)
        else:
            yield self._look(which, what, result, self._go(w, which, me, "jobs", extra=(earlier, waiting, jobs)))

    def _jobs(self, w, which, me):
        earlier, waiting, _ = me[4]
        jobs = tuple((self._job(w.loads[at - 1]), w.uris[at - 1]) for at, _ in earlier)
        if "flow" in self.without:
            yield self._look(which, "list jobs", "", self._go(w, which, me, "traces", extra=(earlier, waiting, jobs)))
        else:
            yield self._weighed(w, which, me, earlier, waiting, jobs, "list jobs")

    def _job(self, load):
        if load == 0:
            return "none"
        if load in WENT_WELL:
            return "ok"
        if "restarts seen" not in self.without and load in (RUNNING_AGAIN, OK_AGAIN):
            return "ok" if load == OK_AGAIN else "running"
        return "running" if load == RUNNING else "failed"

    def _weighed(self, w, which, me, earlier, waiting, jobs, what):
        """What the earlier firings have loaded, once nothing of them is on its way any more."""
        _, number, _, locations, _ = me
        loaded = set()
        for (at, gone), (job, uris) in zip(earlier, jobs, strict=True):
            if job == "running" or (job == "failed" and at in waiting):
                return self._look(which, what, "wait", self._at(w, which, "idle"))
            if job == "none" and gone < 2 and "ten minutes" not in self.without:
                then = "idle" if gone else "write gone"
                return self._look(which, what, "wait", self._at(w, which, then, at))
            if job == "ok":
                loaded |= uris
        if not number:
            well = all(job == "ok" for job, _ in jobs)
            after = self._at(w, which, "locations", 0, 0, locations, (self._folders(loaded), well))
            return self._look(which, what, "settled", after)
        then = "verdict" if self.many else "judge"
        return self._look(which, what, "settled", self._at(w, which, then, number, 0, locations, frozenset(loaded)))

    def _verdict(self, w, which, me):
        """What lies beside it now: its locations may be younger than the look that led here."""
        locations = me[3] if "locations last" in self.without else w.locations
        yield self._judged(w, which, me[1], locations, me[4], "list locations")

    def _judge(self, w, which, me):
        yield self._judged(w, which, me[1], NONE, me[4], "go on")

    def _judged(self, w, which, number, locations, loaded, what):
        """Whether a window that has come back is fired, is dropped, or cannot be decided."""
        folders = self._folders(loaded)
        stale = locations & folders
        source = w.bodies[number - 1]
        if source in loaded and locations <= folders:
            return self._look(which, what, "drop", self._at(w, which, "drop", number, 0, stale))
        if self.files[source] not in folders:
            many = ("many",) if locations else ()
            return self._look(which, what, "fire", self._at(w, which, "fire", number, 0, stale, many))
        return self._look(which, what, "undecided", self._at(w, which, "undecided", number))

    def _fire(self, w, which, me):
        """Stale ``.loc`` objects go first, and only then the window is fired."""
        if me[3] and "stale" not in self.without:
            yield from self._stale(w, which, me, "fire")
        else:
            yield from self._write_intent(w, which, me)

    def _drop(self, w, which, me):
        yield from self._call(w, which, ("delete window", which, me[1]), "stale", "stale", "idle")

    def _stale(self, w, which, me, then="stale"):
        if not me[3]:
            yield self._look(which, "go on", "", self._at(w, which, "idle"))
            return
        folder = min(me[3])
        if "denied stale" in self.without:
            yield from self._denied(w, which, "delete location", then, locations=me[3] - {folder})
        else:
            yield from self._denied(w, which, "delete location", "idle")
        after, result = self._do(w, ("delete location", which, 0, folder, True))
        me = after.dispatchers[which]
        yield self._look(which, "delete location", result, self._go(after, which, me, then, locations=me[3] - {folder}))

    def _locations(self, w, which, me):
        """Of a window that is gone: those of folders that were loaded are stale. For another the window is made anew,
        and judged as one that has come back; it is named where not all was loaded that was fired.
        """
        folders, well = me[4]
        new = me[3] - folders
        if new and well:
            yield self._look(which, "go on", "", self._at(w, which, "make window", extra=min(new)))
        else:
            after = w._replace(named=w.named | new)
            yield self._look(which, "report", "", self._at(after, which, "stale", 0, 0, me[3] & folders))

    def _make_window(self, w, which, me):
        yield from self._call(w, which, ("make window", which, 0, me[4]), "idle", "idle", "idle")

    def _name(self, w, which, me):
        yield self._look(which, "report", "", self._at(w._replace(named=w.named | me[3]), which, "idle"))

    def _undecided(self, w, which, me):
        yield from self._denied(
            w, which, "write undecided", "delete window" if "denied name" in self.without else "idle"
        )
        after, _ = self._do(w, ("write undecided", which, me[1]))
        yield self._look(which, "write undecided", "ok", self._go(after, which, me, "delete window"))
