"""Self-attention over long sequences, by landmarks."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

_KERNEL = 33  # of the convolution over values, as in TransMIL


class NystromAttention(nn.Module):
    """Self-attention whose cost grows with a sequence's length, not its square.

    Xiong et al. (Nystromformer), AAAI 2021, equation 13: the product of attention to landmarks, the pseudoinverse of
    attention among them, and attention of them, where landmarks are means of a sequence's segments. A convolution over
    the values is added, as TransMIL has it. Each sequence of a batch is taken by its own length, so that what it
    gives does not depend on the others.

    Args:
        size: of a token.
        heads: of attention; they share the size.
        landmarks: of a sequence; a shorter one has one for each token.
        iterations: towards the pseudoinverse.
        dropout: share of the output that a training step leaves out.
    """

    def __init__(
        self, size: int, heads: int = 8, landmarks: int = 256, iterations: int = 6, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if size % heads:
            raise ValueError(f"found {heads} heads for {size} features, expected a divisor")
        self._heads, self._landmarks, self._iterations = heads, landmarks, iterations
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.near = nn.Conv2d(heads, heads, (_KERNEL, 1), padding=(_KERNEL // 2, 0), groups=heads, bias=False)
        self.out = nn.Sequential(nn.Linear(size, size), nn.Dropout(dropout))

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Return tokens (batch, token, size).

        Args:
            tokens: (batch, token, size).
            there: (batch, token) bool; a sequence's real tokens come first.
        """
        return self._mixed(*self._parts(tokens, there))

    def with_first_token(self, tokens: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens, and the attention of the first one to each, the mean over heads, (batch, token)."""
        parts = self._parts(tokens, there)
        to_landmarks, among, of_landmarks, _ = parts
        return self._mixed(*parts), (to_landmarks[:, :, :1] @ among @ of_landmarks)[:, :, 0].mean(dim=1)

    def _mixed(self, to_landmarks: Tensor, among: Tensor, of_landmarks: Tensor, values: Tensor) -> Tensor:
        mixed = to_landmarks @ (among @ (of_landmarks @ values)) + self.near(values)
        found: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return found

    def _parts(self, tokens: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return three matrices and the values, (batch, head, row, column) each.

        Attention of tokens to landmarks, the pseudoinverse of that among landmarks, attention of landmarks to tokens.
        """
        batch, length, size = tokens.shape
        shape = (batch, length, 3, self._heads, size // self._heads)
        queries, keys, values = self.qkv(tokens).view(shape).permute(2, 0, 3, 1, 4)
        queries = queries * (size // self._heads) ** -0.5
        values = values.masked_fill(~there[:, None, :, None], 0)
        segments, is_landmark = self._segments(there)
        marks_q, marks_k = (segments.to(part.dtype)[:, None] @ part for part in (queries, keys))
        to_landmarks = _softmax(queries @ marks_k.transpose(2, 3), is_landmark)
        of_landmarks = _softmax(marks_q @ keys.transpose(2, 3), there) * is_landmark[:, None, :, None]
        with _full_precision(tokens.device):
            digits = torch.promote_types(marks_q.dtype, torch.float32)
            among = _softmax(marks_q.to(digits) @ marks_k.to(digits).transpose(2, 3), is_landmark)
            inverse = self._inverse(among * is_landmark[:, None, :, None])
        return to_landmarks, inverse.to(tokens.dtype), of_landmarks, values

    def _segments(self, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return what makes landmarks of tokens (batch, landmark, token), and which there are (batch, landmark)."""
        most = min(self._landmarks, there.shape[1])
        tokens = there.sum(dim=1)[:, None]
        landmarks = tokens.clamp(max=most)
        segment = torch.arange(there.shape[1], device=there.device)[None] * landmarks // tokens
        numbers = torch.arange(most, device=there.device)
        belongs = ((segment[:, None] == numbers[None, :, None]) & there[:, None]).float()
        return belongs / belongs.sum(dim=2, keepdim=True).clamp(min=1), numbers[None] < landmarks

    def _inverse(self, matrix: Tensor) -> Tensor:
        """Return the pseudoinverse by iteration (Razavi et al., 2014), each matrix from its own start."""
        norms = matrix.abs().sum(dim=-1).amax(dim=-1) * matrix.abs().sum(dim=-2).amax(dim=-1)
        inverse = matrix.transpose(-1, -2) / norms[..., None, None]
        one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        for _ in range(self._iterations):
            product = matrix @ inverse
            inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
        return inverse


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Compute as the tensors are: an inverse in half precision is none."""
    autocasts = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if autocasts else contextlib.nullcontext()


def _softmax(scores: Tensor, columns: Tensor) -> Tensor:
    """Return rows that sum to one over the columns that are there, (batch, column)."""
    return scores.masked_fill(~columns[:, None, None], float("-inf")).softmax(dim=-1)
