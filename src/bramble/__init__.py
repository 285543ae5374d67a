"""Bramble: what runs on the controller, or as a service on a node."""
