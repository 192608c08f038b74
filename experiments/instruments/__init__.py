"""Load generators side by side: the same load on one server, and their figures beside the server's own.

`command` is ``python -m experiments instruments``. `environments` installs the tools, `server` starts
the engine, and `running` runs each of the `tools` with a `workload`. `readers` reads the results, and `own`
the engine's metrics. `comparison` makes the tables and checks the goals.
"""
