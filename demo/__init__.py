"""``make demo``: stand-ins for Google Cloud and BqTail on this machine, and a real Airflow between them."""
