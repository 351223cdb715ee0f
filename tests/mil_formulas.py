"""The heads' papers' formulas, for one bag without padding, tile by tile."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oncofed.models.mil import DSMIL, AttentionMIL, BagHead, ClamSB, MaxPooling, MeanPooling, TransMIL
from oncofed.models.mil.nystrom import NystromAttention


def answer(head: BagHead, tiles: Tensor) -> Tensor:
    """Return a head's values (out,) for a bag (tile, feature)."""
    layers = head.embed
    assert isinstance(layers, torch.nn.Sequential)
    hidden = torch.relu(layers[1](layers[0](tiles)))
    found: Tensor
    if isinstance(head, AttentionMIL | ClamSB):
        found = head.classify(gated_weights(head, hidden) @ hidden)
    elif isinstance(head, MeanPooling):
        found = head.classify(torch.stack(list(hidden)).mean(0))
    elif isinstance(head, MaxPooling):
        found = head.classify(torch.stack([column.max() for column in hidden.T]))
    elif isinstance(head, DSMIL):
        found = _dsmil(head, hidden)
    else:
        assert isinstance(head, TransMIL)
        found = _transmil(head, hidden)
    return found


def gated_weights(head: AttentionMIL, hidden: Tensor) -> Tensor:
    """Return gated attention (tile,) of hidden features (tile, hidden): Ilse et al., equation 9."""
    scores = [head.score(torch.tanh(head.tanh(h)) * torch.sigmoid(head.gate(h)))[0] for h in hidden]
    powers = torch.stack(scores).exp()
    return powers / powers.sum()


def _dsmil(head: DSMIL, hidden: Tensor) -> Tensor:
    scores = head.score(hidden)
    queries = [head.query(h) for h in hidden]
    of_values = []
    for value in range(scores.shape[1]):
        critical = queries[int(scores[:, value].argmax())]
        powers = torch.stack([(q @ critical / math.sqrt(len(q))).exp() for q in queries])
        bag = sum(power * head.information(h) for power, h in zip(powers, hidden, strict=True)) / powers.sum()
        of_values.append(bag)
    return (scores.max(dim=0).values + head.classify(torch.cat(of_values))) / 2


def _transmil(head: TransMIL, hidden: Tensor) -> Tensor:
    side = math.ceil(math.sqrt(len(hidden)))
    square = torch.cat([hidden, hidden[: side * side - len(hidden)]])
    tokens = torch.cat([head.token[0], square])
    tokens = tokens + nystrom(head.first, head.norm_first(tokens))
    image = tokens[1:].T.reshape(1, -1, side, side)
    image = image + sum(convolution(image) for convolution in head.near)
    tokens = torch.cat([tokens[:1], image[0].reshape(image.shape[1], -1).T])
    tokens = tokens + nystrom(head.second, head.norm_second(tokens))
    found: Tensor = head.classify(head.norm(tokens[0]))
    return found


def nystrom(layer: NystromAttention, tokens: Tensor) -> Tensor:
    """Return a layer's tokens (token, size) of one sequence: Xiong et al., equations 13 and 14."""
    length, size = tokens.shape
    width = size // layer._heads
    landmarks = min(layer._landmarks, length)
    queries, keys, values = layer.qkv(tokens).chunk(3, dim=1)
    found = []
    for number in range(layer._heads):
        q, k, v = (part[:, number * width : (number + 1) * width] for part in (queries, keys, values))
        q = q / math.sqrt(width)
        groups = [[i for i in range(length) if i * landmarks // length == mark] for mark in range(landmarks)]
        marks_q, marks_k = (torch.stack([part[group].mean(0) for group in groups]) for part in (q, k))
        among = (marks_q @ marks_k.T).softmax(1)
        one, inverse = torch.eye(landmarks).to(q), among.T / (among.sum(0).max() * among.sum(1).max())
        for _ in range(6):
            product = among @ inverse
            inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
        mixed = (q @ marks_k.T).softmax(1) @ inverse @ (marks_q @ k.T).softmax(1) @ v
        kernel = layer.near.weight[number, 0, :, 0]
        reach = len(kernel) // 2
        near = []
        for i in range(length):
            close = [j for j in range(length) if abs(j - i) <= reach]
            near.append(sum(kernel[j - i + reach] * v[j] for j in close))
        found.append(mixed + torch.stack(near))
    output: Tensor = layer.out[0](torch.cat(found, dim=1))
    return output


def tile_losses(head: ClamSB, tiles: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
    """Return CLAM's losses of one bag's tiles if each statement holds, and if not: Lu et al., Methods."""
    layers = head.embed
    hidden = torch.relu(layers[1](layers[0](tiles)))
    order = gated_weights(head, hidden).argsort(descending=True).tolist()
    top, bottom = order[:chosen], order[::-1][:chosen]
    statements = head.speaks.out_features // 2
    scores = head.speaks(hidden)

    def svm(tile: int, statement: int, right: int) -> Tensor:
        own, other = (scores[tile, statement + statements * side] for side in (right, 1 - right))
        return torch.log(own.exp() + (1 + other).exp()) - own

    holds, fails = [], []
    for statement in range(statements):
        for_it = [svm(tile, statement, 1) for tile in top] + [svm(tile, statement, 0) for tile in bottom]
        holds.append(torch.stack(for_it).mean())
        fails.append(torch.stack([svm(tile, statement, 0) for tile in top]).mean())
    return torch.stack(holds), torch.stack(fails)
