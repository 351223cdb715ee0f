"""The site admin's side: check, run and govern a site."""
