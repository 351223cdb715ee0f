"""A process that a slide ends, as a broken decoder does."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from typing import Any

from oncofed.tasks.extraction.messages import Done, Ready, SlideJob, Wanted


def run(connection: Connection, *_: Any) -> None:
    """Do slides, two in hand at a time, up to one named bad."""
    connection.send(Ready("colour", "colour", 39))
    in_hand: list[SlideJob] = []
    while True:
        while len(in_hand) < 2 and not any(job.alone for job in in_hand):
            connection.send(Wanted())
            job = connection.recv()
            if job is None:
                break
            in_hand.append(job)
        if any(job.name == "bad" for job in in_hand):
            os._exit(9)
        connection.send(Done(in_hand.pop(0).number))
