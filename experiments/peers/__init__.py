"""Peers side by side: the same load on the same engine, with tokenpool and with its alternatives.

`command` is ``python -m experiments peers``. `environment` installs the peers. `tenants` are those that all
systems serve, and `loads` are the loads. `systems` lists all; `litellm`, `envoy`, `routers` and `ours`
configure and start them, with the templates in ``files/``. `measuring` runs the loads and reads the results,
and `table` compares them.
"""
