"""Every use of a private API, one module per package, each with the reason.

A test stands for each (`tests/compat`), so that a release that drops one is noticed.
"""
