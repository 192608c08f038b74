"""Runs of one scenario at several rates: ``loadgen sweep`` and ``loadgen capacity``.

`points` judges one rate, `knee` and `ladder` the rates of a sweep, and `search` those of a capacity search.
All are pure. `steps` performs the runs, `report` writes the results, and `commands` is the command line.
"""
