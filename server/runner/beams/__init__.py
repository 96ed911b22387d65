"""Beam searches in a runner: what a step of a search does to the sequences of its hypotheses.

beam_step           BeamStep: after a decode step in slots, the hypotheses that go on, and their caches
unbatched_beams     UnbatchedBeams: a search of a model that cannot be run in slots
"""

from .beam_step import BeamStep, flatten, make_search, records_rows, search_request
from .unbatched_beams import UnbatchedBeams

__all__ = ["BeamStep", "UnbatchedBeams", "flatten", "make_search", "records_rows", "search_request"]
