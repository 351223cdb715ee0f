"""The server's record of a run: one event a line.

The live view, the TensorBoard curves and the result are derived from it. Each kind of event is a class whose fields are
the line's keys.
"""

from oncofed.rounds.events.base import Event, Incident, InDigest, Unknown
from oncofed.rounds.events.log import EVENTS_FILE, PROFILE_EVENTS, TRAINING_EVENTS, EventLog, EventReader, read_event
from oncofed.rounds.events.run import (
    CrossSite,
    EarlyStop,
    Failed,
    Finished,
    Harmonized,
    IntensitiesNotAgreed,
    NotKept,
    NotStandardised,
    ProfileFinished,
    ProfileStarted,
    Ready,
    Resumed,
    RoundEnded,
    Standardised,
    Started,
    StepsSpent,
    Stopped,
    SumFailed,
    Summed,
    TemplateNotAgreed,
    Validated,
)
from oncofed.rounds.events.sites import (
    Answered,
    Dropped,
    EncoderUnknown,
    Excluded,
    Joined,
    Late,
    Lost,
    Refused,
    Returned,
    SiteNotKept,
    SiteProgress,
    TaskSent,
)

MODELS_FOLDER = "models"
BEST_MODEL = "best.safetensors"
# Group of FLARE's job statistics that holds the run's digest.
STATS_GROUP = "oncofed"

__all__ = [
    "BEST_MODEL",
    "EVENTS_FILE",
    "MODELS_FOLDER",
    "PROFILE_EVENTS",
    "STATS_GROUP",
    "TRAINING_EVENTS",
    "Answered",
    "CrossSite",
    "Dropped",
    "EarlyStop",
    "EncoderUnknown",
    "Event",
    "EventLog",
    "EventReader",
    "Excluded",
    "Failed",
    "Finished",
    "Harmonized",
    "InDigest",
    "Incident",
    "IntensitiesNotAgreed",
    "Joined",
    "Late",
    "Lost",
    "NotKept",
    "NotStandardised",
    "ProfileFinished",
    "ProfileStarted",
    "Ready",
    "Refused",
    "Resumed",
    "Returned",
    "RoundEnded",
    "SiteNotKept",
    "SiteProgress",
    "Standardised",
    "Started",
    "StepsSpent",
    "Stopped",
    "SumFailed",
    "Summed",
    "TaskSent",
    "TemplateNotAgreed",
    "Unknown",
    "Validated",
    "read_event",
]
