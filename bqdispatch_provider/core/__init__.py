"""Pure decisions: the values that all rooms share, the plan, the report, and what a log says.

==================================================  ==================================================
question                                            file
==================================================  ==================================================
When is a window due, and how does it stand?        ``windows``
How old must a trace be? Which job is it for?       ``traces``
What is an object in the task folder?               ``listing``
What are targets and ledger entries called?         ``targets``
What takes a slot of a limit, and who counts?       ``limits``
What is an event, a share, a filter (``only``)?     ``events``
What is dispatched, held back or quarantined?       ``planning``, with ``plan_traces``, ``plan_windows``
Which events do the limits let through?             ``draft``
What goes into a plan, and what comes out?          ``plans``
Which lanes, outcomes and reasons are there?        ``model``; of events that wait: ``waits``
What do report, history and log say?                ``report``, ``history``, ``log_lines``
Which event or project is an error about?           ``report_errors``, ``named_events``
How long is the pause between two looks?            ``polling``
How are connections and set-ups named?              ``connection``, ``setups``
What is wrong with a pool that mirrors a limit?     ``pools``
==================================================  ==================================================

Here belongs what needs no client, no clock and no Airflow, so that a test needs none either. Reading and writing
belong in ``gcp``.
"""
