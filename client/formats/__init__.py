"""File formats of attributions.

files    save, encode, save_picture: the suffix chooses the format
inseq    Inseq's JSON
npz      NumPy's npz
"""

from .files import check_path, check_picture_path, encode, save, save_picture
from .npz import build_npz_arrays

__all__ = ["build_npz_arrays", "check_path", "check_picture_path", "encode", "save", "save_picture"]
