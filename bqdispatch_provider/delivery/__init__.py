"""Delivery: how each event gets across exactly once, whoever crashes and whatever answer is lost.

- An event is announced in an intent (``intents``, ``own_intents``, ``intent_objects``), so that dispatchers stay out of
  each other's way, and a crash leaves a record of what was begun.
- A trace is moved (``mover``). A window is fired (``firer``): a dispatcher creates its claim, an object that only one
  dispatcher can create, and copies that. Both are copies (``copier``) of sources (``moves``). An event that may have
  been delivered is in doubt: it is fenced, which stops copies under way, and then resolved (``in_doubt``).
- A window gathers files of one folder or, under a ``MultiPath`` rule, of many folders. Beside a window of many folders
  BqTail writes a ``.loc`` object for each folder, the first included. By these objects such a window is known. A
  ``.loc`` object is *stale* if an earlier firing has loaded its folder.
- Fired windows are remembered in the ``ledger``, where their claims lie. Firings whose load is not visible yet, neither
  by its trace nor in BigQuery's list of jobs (``visible_loads``), count at the limits (``open_firings``).
- BqTail deletes no window from the task folder. The firer deletes a window of many folders before it fires it. The
  clean-up of a cycle deletes a window of one folder once it was kept for ``MaxTriggerDelayMs`` (a setting, by default
  two minutes) after its firing. Until then the ledger keeps it from being fired again.
- If the copy of a window of one folder is refused, its claim is given up. The window lies there still, so the next
  cycle tries again.
- A window returns when a file's storage event comes after the window was fired and deleted: BqTail then creates it
  anew. It is judged (``late_windows``) by the loads of its earlier firings (``evidence``) and by its content
  (``window_body``).
- BqTail has *dropped* a window if its fired copy was consumed, and no load was submitted within
  ten minutes. A dropped window is *undecided* if the file whose storage event made it still exists; so is a returned
  one whose firing could load files twice. An undecided window goes into ``undecided/`` of the task folder.
- What else must not be dispatched goes into ``quarantine`` (the folder ``ErrorURL``), and comes back from there.

After a 404 or 412 somebody else may have been sooner, or this dispatcher's own first try, whose answer was lost. (Not
of a copy into the trigger bucket: after a lost answer it is never repeated, but the event is in doubt.)

=========  =============================================================================================================
call       what follows
=========  =============================================================================================================
copy       Both ends are looked up (``copier``). Source gone or written again: ignored. Target of the same content: the
           copy was made before, and is finished now (the trace deleted, the window recorded as fired). Target of other
           content: an earlier trace of this name that BqTail has not consumed yet; copied beside it, to a name with the
           generation (the *alternative target*). No target after a 412: another object was in the way, and BqTail
           has just consumed it; copied once more. Otherwise, without a target: an error, and the event waits.
delete     The object is looked up (``gcp.storage``). Still there in this generation: it counts as refused, and a later
           cycle retries. Gone or written again: it counts as deleted. One exception: if a stale ``.loc`` was written
           again, its window waits, and is judged anew.
fence      The source is looked up (``in_doubt``). Written by this fence: goes on. Unchanged: an error, and it stays in
           doubt. Gone or written by somebody else: ignored.
claim      The claim is looked up (``firer``). Written by this try: goes on. Of somebody else: ignored, or taken over
           after three minutes. Missing: ignored if the window is gone or written again; otherwise an error.
take-over  The claim is looked up, also after a success (``firer``). Written by this try: goes on in doubt, unless
           ``fired`` is there. Unchanged: an error. Gone or of somebody else: ignored.
``fired``  The entry is looked up (``firer``). There: recorded. Missing: an error, and a later cycle records it.
intent     To renew it: it is looked up (``own_intents``). There: its generation is used from now on. Gone: renewed no
           more. To delete it: gone after a 404. After a 412 this dispatcher has renewed it, and the answer was lost: it
           is marked as completed. To read another's: after a 404 all are listed again, since what it left in doubt is
           in a newer one. Still a 404 to one that the fifth list has: an error, and the traces wait.
=========  =============================================================================================================

Some objects are left as they are if they exist already (412), since an earlier try wrote them: the note beside a
quarantined object, an ``undecided/`` marker, and the ledger's entries ``gone-<step>`` and ``aside``.

*Ignored*: somebody else has the event in hand or is through with it. The next look finds what was written again.

Here belongs each rule about the order of writes, and about who has an event in hand. When an event is due belongs in
``core``, how an object is written in ``gcp``.
"""
