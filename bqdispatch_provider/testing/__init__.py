"""Stand-ins for the services around a dispatcher, for tests and demos.

Here belongs what behaves as a service does, also for the tests of users. No other room imports this one. What seeds a
task folder for our own tests belongs in ``tests/support``, what a demo shows in ``demo``.
"""
