"""Recorded workloads: importers of public traces and data sets, one module for each format.

An importer turns a file into rows. `selection` takes a part of them, and scales it. `field` reads the
``trace:`` of a scenario. This is the only loader of such files: experiments and ``tokenpool simulate`` use
it, too.
"""
