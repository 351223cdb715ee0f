"""Sites that return what they were sent."""
