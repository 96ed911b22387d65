"""The RPCs that run requests on the engines.

attribute            Attribute: one request, one stream of outputs
attribute_many       AttributeMany: many texts on one stream
follow               Follow: events of a client in, outputs out
cancel_attribution   CancelAttribution: ends requests by their id
answer               Answer: a request that the engine works on, and the messages of its outputs; AnswerStarter
"""

from .answer import AnswerStarter
from .attribute import AttributeMethod
from .attribute_many import AttributeManyMethod
from .cancel_attribution import CancelAttributionMethod
from .follow import FollowMethod

__all__ = [
    "AnswerStarter",
    "AttributeManyMethod",
    "AttributeMethod",
    "CancelAttributionMethod",
    "FollowMethod",
]
