"""Codecs of compressed KV caches, in numpy: what the interpreter runs and every engine is checked against."""

from .codec import TQ_BITS as TQ_BITS
from .codec import Codec as Codec
from .codec import codec_named as codec_named
from .codec import decode as decode
from .codec import encode as encode
from .codec import is_codec as is_codec
from .rotation import check_rotation as check_rotation
from .rotation import hadamard as hadamard
from .rotation import signs as signs
