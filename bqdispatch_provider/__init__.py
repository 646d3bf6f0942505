"""BqTail's dispatcher as an Apache Airflow provider. Importing the package costs nothing: import from its modules."""

__version__ = "0.1.0"
