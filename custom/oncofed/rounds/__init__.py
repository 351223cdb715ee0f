"""The server's part of a job: rounds, quorum, intake of updates, state of the run. Nothing here knows FLARE."""
