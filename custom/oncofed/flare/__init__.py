"""What runs inside FLARE: the server's rounds, a site's turn, and what travels between them."""
