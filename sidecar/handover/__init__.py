"""Handover: requests that run on another replica, over the peer ports of the sidecars."""
