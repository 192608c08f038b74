"""The command line ``tokenpool``: for people and scripts that operate a pool.

Each command is a module with ``add_parser(commands)`` and ``run(arguments)``. ``command.py`` has what they
share. A command only reads, or calls the API of a coordinator; no process of a pool imports this package.
"""
