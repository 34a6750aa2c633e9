"""How alike two spaces of features are: CKNNA (arXiv 2405.07987), a CKA of mutual neighbours.

The formula is that of the Platonic Representation Hypothesis' code, with k = 10 as REPA reports it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from regscale.errors import RegscaleError


def cknna(a: Tensor, b: Tensor, *, k: int = 10) -> float:
    """Between 0 (or below) and 1, of features (N, R) and (N, S) of the same N pictures; float64.

    HSIC over pairs that are among each other's k nearest in both spaces, divided by the root of
    the same of each space with itself.
    """
    if len(a) != len(b) or len(a) <= k + 2:
        raise RegscaleError(
            "CKNNA",
            f"needs the same pictures in both spaces, more than {k + 2}",
            found=f"{len(a)} and {len(b)}",
            fix="Take more pictures, or a smaller k.",
        )
    K, L = (x @ x.T for x in (F.normalize(each.double(), dim=1) for each in (a, b)))
    cross = _similarity(K, L, k)
    own = _similarity(K, K, k) * _similarity(L, L, k)
    return float(cross / own.sqrt())


def _similarity(K: Tensor, L: Tensor, k: int) -> Tensor:
    """The unbiased HSIC (Song et al. 2012, eq. 5) of both kernels within the mutual neighbours."""
    mask = _neighbours(K, k) * _neighbours(L, k)
    return _hsic(mask * K, mask * L)


def _neighbours(K: Tensor, k: int) -> Tensor:
    """(N, N): 1 at the k nearest of each row, itself left out."""
    off = K.clone().fill_diagonal_(float("-inf"))
    return torch.zeros_like(K).scatter_(1, off.topk(k, dim=1).indices, 1.0)


def _hsic(K: Tensor, L: Tensor) -> Tensor:
    N = len(K)
    K, L = (x.clone().fill_diagonal_(0) for x in (K, L))
    value = (K * L.T).sum() + K.sum() * L.sum() / ((N - 1) * (N - 2))
    value = value - 2 * (K @ L).sum() / (N - 2)
    return value / (N * (N - 3))
