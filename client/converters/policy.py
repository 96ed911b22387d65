"""What the policy of a follow stream says becomes the client's types."""

from __future__ import annotations

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..results import PolicyDecision


def parse_decision(message: service_pb.PolicyDecision) -> PolicyDecision:
    """Parses what the policy says of a step."""
    is_held = message.decision == service_pb.DECISION_HOLD
    return PolicyDecision(is_held, message.source_token, message.firm_source_tokens)
