"""File formats of attributions.

files    save, check_path: the suffix chooses the format
inseq    Inseq's JSON
npz      NumPy's npz
"""

from .files import check_path, save
from .npz import build_npz_arrays

__all__ = ["build_npz_arrays", "check_path", "save"]
