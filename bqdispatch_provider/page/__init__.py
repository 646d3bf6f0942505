"""The page in Airflow that shows how dispatching goes: its routes, who may see what, and what it shows."""
