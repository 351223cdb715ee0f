"""Policies on what a site runs, and what leaves it."""
