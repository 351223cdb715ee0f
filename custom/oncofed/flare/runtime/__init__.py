"""Processes of FLARE's server and sites, and their resources."""
