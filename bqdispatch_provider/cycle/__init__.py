"""One cycle of a dispatcher: look at the task folder, dispatch within the limits, clean up, report.

==================================================  ==================================================
question                                            file
==================================================  ==================================================
In which order is everything looked at?             ``observation``
What counts at the limits while on its way?         ``underway``
In which order is a plan carried out?               ``dispatching``
Who gets the slots of refused events?               ``dispatching``, by what ``recording`` has freed
When are the limits counted again?                  ``recount``
When is nothing new begun?                          ``work_gate``
How do results get into report and log?             ``recording``
What is quarantined and deleted after a cycle?      ``clean_up``; in the journal: ``retention``
Who writes ``performance.json``, the history?       ``performance``, ``history``
What do these steps share?                          ``services``; without a dispatcher: ``task_folder``
==================================================  ==================================================

Here belongs the order in which a cycle asks for things and acts on them. What is dispatched is decided in ``core``,
how one event gets across in ``delivery``; the loop around the cycles is :mod:`bqdispatch_provider.dispatcher`.
"""
