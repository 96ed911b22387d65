"""All settings of a server: name, type, default, description, and which values are right."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

# Numbers above these are no wish, but a slip.
_MOST, _MOST_THREADS, _MOST_SECONDS, _MOST_FRONT_ENDS = 10**9, 1024, 86_400, 64
# One message of gRPC has less than 2 GiB.
_MOST_MESSAGE_MIB, _MOST_METADATA_KIB, _MOST_AGE = 2047, 1024, 30 * 86_400


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: The name, which is the key of the TOML file too.
        description: One line for people. The help of the command line shows it.
        default: What holds where nothing is set. None: the program decides.
        kind: The type of the value: str, int, float or bool.
        metavar: What the help writes for the value.
        choices: The only right values of a text.
        pattern: A regular expression that a text must match, and what the text is for people.
        maximum: The greatest right number. The least whole number is 1. Other numbers must be above 0.
        is_of_model: Whether models of one server may differ in this setting.
        is_positional: Whether the command line has an argument instead of an option.
        has_flag: Whether the command line has it. What few people change is in the file and in the environment only.
    """

    name: str
    description: str
    default: str | float | bool | None = None
    kind: type[Any] = str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    pattern: tuple[str, str] | None = None
    maximum: int = _MOST
    is_of_model: bool = False
    is_positional: bool = False
    has_flag: bool = True

    @property
    def flag(self) -> str:
        """The option of the command line."""
        return self.metavar or self.name if self.is_positional else f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The variable of the environment."""
        return f"SIDELIGHT_{self.name.upper()}"

    @property
    def requirement(self) -> str:
        """Says which values are right, after the word "must be"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is int:
            return f"a whole number from 1 to {self.maximum:,}"
        if self.kind is float:
            return f"a number above 0 and at most {self.maximum:,}"
        if self.pattern:
            return self.pattern[1]
        return "true or false" if self.kind is bool else "a text"

    def read(self, value: object) -> Any:
        """Returns a value in its type. A number and a truth value may be texts. Raises ValueError for a wrong value."""
        if self.kind is str:
            has_form = isinstance(value, str) and (not self.pattern or re.fullmatch(self.pattern[0], value))
            if has_form and (not self.choices or value in self.choices):
                return value
        elif self.kind is bool:
            truth = {"true": True, "1": True, "false": False, "0": False}
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in truth:
                return truth[value.lower()]
        elif (number := _number(value, self.kind)) is not None and number <= self.maximum:
            return number
        raise ValueError(f"must be {self.requirement}")


def _number(value: object, kind: type[Any]) -> Any:
    """Returns a number of a type that is above 0; None if the value is something else."""
    kinds = (str, int) if kind is int else (str, int, float)  # 1.5 is no whole number
    if isinstance(value, bool) or not isinstance(value, kinds):
        return None
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        return None
    return number if number > 0 and math.isfinite(number) else None


# Limits that few people change.
LIMITS: tuple[Setting, ...] = (
    Setting("max_unread_kib", "KiB of events held for one reader", 256, kind=int, is_of_model=True, has_flag=False),
    Setting("max_step_mib", "MiB of attention of one step", 64, kind=int, is_of_model=True, has_flag=False),
    Setting(
        "max_pass_mib",
        "MiB of attention made at once: of the encoder, or of a given target of a model that gives whole matrices",
        1024,
        kind=int,
        is_of_model=True,
        has_flag=False,
    ),
    Setting("max_texts_per_stream", "texts that run at once on an AttributeMany stream", 64, kind=int, has_flag=False),
    Setting(
        "max_metadata_kib", "KiB of a call's metadata", 16, kind=int, maximum=_MOST_METADATA_KIB, has_flag=False
    ),
    Setting("max_concurrent_streams", "open calls of a connection", 4096, kind=int, has_flag=False),
    Setting(
        "min_ping_interval",
        "seconds between two pings of a connection",
        10.0,
        kind=float,
        maximum=_MOST_SECONDS,
        has_flag=False,
    ),
    Setting(
        "arrival_timeout",
        "seconds within which a request arrives after its call has begun",
        10.0,
        kind=float,
        maximum=_MOST_SECONDS,
        has_flag=False,
    ),
    Setting(
        "reader_timeout",
        "seconds for which a reader may take nothing",
        60.0,
        kind=float,
        maximum=_MOST_SECONDS,
        has_flag=False,
    ),
    Setting(
        "stream_idle_timeout",
        "seconds for which the client of an open stream may send nothing",
        600.0,
        kind=float,
        maximum=_MOST_SECONDS,
        has_flag=False,
    ),
)  # fmt: skip

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model",
        "a directory or an id on the Hugging Face hub; without one, the English-German model that comes along",
        metavar="MODEL",
        is_positional=True,
    ),
    Setting(
        "address",
        "where to listen; port 0 picks one; unix:PATH is a socket in the file system",
        "127.0.0.1:50051",
        metavar="HOST:PORT",
    ),
    Setting("tls_cert", "encrypt with this certificate, as PEM; may be replaced", metavar="FILE"),
    Setting("tls_key", "the certificate's private key, as PEM", metavar="FILE"),
    Setting("tls_client_ca", "clients need a certificate of one of these authorities, as PEM", metavar="FILE"),
    Setting("tokens", "calls need a token of this TOML file, which may be replaced; see the README", metavar="FILE"),
    Setting(
        "unix_mode",
        "permissions of the socket unix:PATH, such as 0660",
        metavar="MODE",
        pattern=("0?[67][0-7]{2}", "a text of octal digits, from 0600 to 0777"),
    ),
    Setting("insecure", "listen beyond this machine although connections are not encrypted", False, kind=bool),
    Setting(
        "reflection",
        "whether clients may ask for the contract; without it, if only this machine can reach the address",
        kind=bool,
    ),
    Setting("name", "what requests call the model; without one, its last path component or its id"),
    Setting("device", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one", "auto", is_of_model=True),
    Setting(
        "dtype",
        "auto: float32 on a CPU, the checkpoint's own type on a GPU; int8: linear layers in 8 bits, on a CPU",
        "auto",
        choices=("auto", "float32", "float16", "bfloat16", "int8"),
        is_of_model=True,
    ),
    Setting(
        "threads",
        "CPU threads for the model; without it, all cores, or fewer while others want them too",
        kind=int,
        metavar="N",
        maximum=_MOST_THREADS,
        is_of_model=True,
    ),
    Setting(
        "compile",
        "have torch.compile make one graph of a step; for GPUs, as a step is then of all slots and --max-length",
        False,
        kind=bool,
        is_of_model=True,
    ),
    Setting("offline", "fetch nothing from the Hugging Face hub: take what is on this machine", False, kind=bool),
    Setting(
        "max_length", "the most tokens of a source or a target", kind=int, metavar="N", is_of_model=True
    ),
    Setting("max_slots", "the most requests worked on at once", 32, kind=int, metavar="N", is_of_model=True),
    Setting(
        "memory_fraction",
        "the share of the free memory that the slots' caches may take; fewer slots where it does not do",
        0.5,
        kind=float,
        metavar="X",
        maximum=1,
    ),
    Setting("max_waiting", "requests queued at most", 1024, kind=int, metavar="N", is_of_model=True),
    Setting("max_feature_mib", "MiB of recordings queued at most", 256, kind=int, metavar="N", is_of_model=True),
    Setting(
        "frontends",
        "processes that own connections and messages, beside the one with the model; 1: one process does all; on Linux",
        1,
        kind=int,
        metavar="N",
        maximum=_MOST_FRONT_ENDS,
    ),
    Setting(
        "max_new_tokens",
        "the most tokens written for a request; without it, as many as the model has positions",
        kind=int,
        metavar="N",
        is_of_model=True,
    ),
    Setting(
        "max_message_mib", "MiB of a client's message at most", 4, kind=int, metavar="N", maximum=_MOST_MESSAGE_MIB
    ),
    Setting("max_follow_streams", "follow streams open at most", 256, kind=int, metavar="N", is_of_model=True),
    Setting(
        "max_stream_age",
        "after how long a stream ends, whatever it does",
        43200.0,
        kind=float,
        metavar="SECONDS",
        maximum=_MOST_AGE,
    ),
    Setting(
        "max_connection_age",
        "after how long a connection takes no more calls, so that clients behind load balancers connect anew",
        kind=float,
        metavar="SECONDS",
        maximum=_MOST_AGE,
    ),
    Setting(
        "grace",
        "for how long running requests may go on after SIGTERM; docker kills after 10 seconds, Kubernetes after 30",
        7.0,
        kind=float,
        metavar="SECONDS",
        maximum=_MOST_SECONDS,
    ),
    Setting(
        "step_timeout",
        "for how long a step may take before health checks say that the model does not serve",
        60.0,
        kind=float,
        metavar="SECONDS",
        maximum=_MOST_SECONDS,
        is_of_model=True,
    ),
    Setting(
        "log_level",
        "the least serious lines that the log has; debug says too how each layer runs, and how loading proceeds",
        "info",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting("log_format", "text: lines for people; json: a JSON object a line", "text", choices=("text", "json")),
    Setting("log_texts", "write the source text of each request into the log", False, kind=bool),
    Setting(
        "metrics_address",
        "where Prometheus reads metrics, by HTTP at /metrics; port 0 picks one; without it, no port is open",
        metavar="HOST:PORT",
    ),
    *LIMITS,
)  # fmt: skip

# What a table [models.NAME] of the file, and the option --model, must have besides settings with `is_of_model`.
PATH = Setting("path", "the model's directory, or its id on the Hugging Face hub")

# The same settings by their names.
BY_NAME = {setting.name: setting for setting in SETTINGS}
MODEL_KEYS = {"path": PATH} | {setting.name: setting for setting in SETTINGS if setting.is_of_model}

# Variables of clients, which a server has no use for.
CLIENT_VARIABLES = frozenset(
    f"SIDELIGHT_{name}"
    for name in ("TLS", "TLS_CA", "TLS_CLIENT_CERT", "TLS_CLIENT_KEY", "TLS_SERVER_NAME", "TOKEN", "TOKEN_FILE")
)
