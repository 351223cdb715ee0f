"""Features of slides' tiles, in files of this and of other tools."""
