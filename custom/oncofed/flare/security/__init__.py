"""What may come in and go out: outbound filter, revocation, submission checks."""
