"""Stand-ins for the services around a dispatcher, for tests and demos."""
