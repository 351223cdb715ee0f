"""Processes of FLARE's server and sites: started, resumed, cleaned up after, given their GPUs."""
