"""What is written of each case, whole or not at all: labels, measurements, objects, classes, slides, a page."""
