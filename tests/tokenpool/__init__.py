"""Tests of the domain: synchronous, without fakes, time as an argument."""
