"""The site admin's side: opening a kit, looking whether all is ready, running the site."""
