"""The page in Airflow that shows how dispatching goes: its routes, who may see what, and what it shows.

Here belongs what answers a browser: routes, access, caches, and the form in JSON. The words for what is shown belong in
``view``, since the terminal has them too. Nothing here dispatches, or writes to Google Cloud.
"""
