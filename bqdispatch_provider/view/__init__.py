"""Views for people: how dispatching goes, and why an event waits, for the page in Airflow and for the terminal.

Here belongs what puts figures and findings into words. How they come about belongs in ``cycle`` and ``core``, how they
are laid out in ``page`` and ``commands``.
"""
