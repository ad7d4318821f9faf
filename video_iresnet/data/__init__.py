"""From a list of videos to a batch of uint8 clips."""
