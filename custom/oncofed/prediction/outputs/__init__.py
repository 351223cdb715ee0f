"""Output files of each case, written completely or not."""
