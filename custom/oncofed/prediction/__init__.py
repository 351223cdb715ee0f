"""From a trained model to a reading: predict, evaluate, export. Nothing here knows of federation."""
