"""Checks of what enters and leaves: admission, outbound filter, revocation, submissions."""
