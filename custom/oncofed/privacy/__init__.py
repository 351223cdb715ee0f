"""What a site lets run, and what it lets leave."""
