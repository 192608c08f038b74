"""Tests of the engine simulator."""
