"""LinkOptions become a Linker, for any way to link.

Raises RequestError with the path of the field.
"""

from __future__ import annotations

from sidelight.v1 import attribution_service_pb2 as service_pb

from ....alignment import Linker, LinkFeature
from ....errors import invalid
from ....models import ModelInfo
from ...enums import LINK_FEATURES, LINK_METHODS, SYMMETRIZATIONS


def check_link_options(options: service_pb.LinkOptions) -> None:
    """Checks what needs no model. Raises RequestError."""
    if options.method and options.method not in LINK_METHODS:
        raise invalid("link_options.method", "UNKNOWN_VALUE", f"{options.method} has no meaning here")
    for index, feature in enumerate(options.features):
        field = f"link_options.features[{index}]"
        if feature not in LINK_FEATURES:
            raise invalid(field, "UNKNOWN_VALUE", "is no feature")
        if feature in options.features[:index]:
            raise invalid(field, "DUPLICATE", "is asked for twice")
    if options.symmetrization not in SYMMETRIZATIONS:
        raise invalid("link_options.symmetrization", "UNKNOWN_VALUE", f"{options.symmetrization} has no meaning here")
    if options.symmetrization and not options.reverse_model:
        problem = "needs reverse_model: links of one direction are not joined"
        raise invalid("link_options.symmetrization", "CONTRADICTION", problem)


def make_linker(options: service_pb.LinkOptions, loaded: ModelInfo, *, is_live: bool = False) -> Linker:
    """Returns the linker of a model. Raises RequestError for a feature that cannot be had.

    `is_live` is for words that are linked while a target grows: then the encoder cannot read the target. What
    calibration has chosen for words without this feature is used then.
    """
    preset = loaded.link_preset
    features: list[LinkFeature] = [LINK_FEATURES[feature] for feature in options.features]
    if is_live and "encoder_states" in features:
        problem = "goes with Align: links of Attribute have no states of the target"
        raise invalid(f"link_options.features[{features.index('encoder_states')}]", "CONTRADICTION", problem)
    if is_live and not features:
        weights = preset.decision(has_states=False).weights
        features = [feature for feature in weights if feature != "encoder_states"] or ["attention"]
    for index, feature in enumerate(features):
        if feature == "lexicon" and preset.lexicon is None:
            problem = f"needs a lexicon, and the calibration of {loaded.name} has none"
            raise invalid(f"link_options.features[{index}]", "NO_LEXICON", problem)
    method = LINK_METHODS[options.method] if options.method else None
    return Linker(preset, method, features)
