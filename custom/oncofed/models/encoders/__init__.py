"""Encoders of tiles: a catalogue, and the weights that a site has."""

from oncofed.models.encoders.check import Checked, check_encoder
from oncofed.models.encoders.entry import EncoderEntry, Reference, catalogue, catalogue_name, find_entry
from oncofed.models.encoders.folder import (
    FOLDER_VARIABLE,
    encoders_folder,
    keep_weights,
    kept_digest,
    require_weights,
    weights_at_hand,
)
from oncofed.models.encoders.images import Images, known_tile
from oncofed.models.encoders.networks import build_network
from oncofed.models.encoders.tiles import unusual_tiles
from oncofed.models.encoders.weights import LoadedEncoder, load_encoder, weights_digest

__all__ = [
    "FOLDER_VARIABLE",
    "Checked",
    "EncoderEntry",
    "Images",
    "LoadedEncoder",
    "Reference",
    "build_network",
    "catalogue",
    "catalogue_name",
    "check_encoder",
    "encoders_folder",
    "find_entry",
    "keep_weights",
    "kept_digest",
    "known_tile",
    "load_encoder",
    "require_weights",
    "unusual_tiles",
    "weights_at_hand",
    "weights_digest",
]
