"""The RPCs that run requests on the engines.

attribute            Attribute: one request, one stream of outputs
attribute_many       AttributeMany: many texts on one stream
align                Align: the links of a pair, and its markup
aligner              Aligner: what Align and AttributeMany do with a pair
pair_reader          what the engines compute of a pair: rows and states
text_stream          TextStream: a stream of a client with many texts
many_alignments      the pairs of one AttributeMany stream
follow               Follow: events of a client in, outputs out
cancel_attribution   CancelAttribution: ends requests by their id
answer               Answer: a request that the engine works on, and the messages of its outputs; AnswerStarter
"""

from .align import AlignMethod
from .aligner import Aligner
from .answer import MESSAGE_BYTES, Answer, AnswerStarter, Validator, group_outputs
from .attribute import AttributeMethod, deadline_of
from .attribute_many import AttributeManyMethod
from .cancel_attribution import CancelAttributionMethod
from .follow import FollowMethod
from .text_stream import TextStream

__all__ = [
    "MESSAGE_BYTES",
    "AlignMethod",
    "Aligner",
    "Answer",
    "AnswerStarter",
    "AttributeManyMethod",
    "AttributeMethod",
    "CancelAttributionMethod",
    "FollowMethod",
    "TextStream",
    "Validator",
    "deadline_of",
    "group_outputs",
]
