"""File formats of attributions.

files            save, encode, save_picture: the suffix chooses the format
inseq            Inseq's JSON
inseq_reading    from_inseq, to_inseq: Inseq's objects and files
npz              NumPy's npz
"""

from .files import check_path, check_picture_path, encode, save, save_picture
from .inseq_reading import from_inseq, to_inseq
from .npz import build_npz_arrays

__all__ = [
    "build_npz_arrays",
    "check_path",
    "check_picture_path",
    "encode",
    "from_inseq",
    "save",
    "save_picture",
    "to_inseq",
]
