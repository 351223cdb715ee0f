"""Admission, outbound filter, revocation and checks of submissions."""
