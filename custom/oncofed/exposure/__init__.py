"""What an attacker reads from updates: attacks on one's own data."""
