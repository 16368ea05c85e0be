"""What a Transformer is made of: rotary positions, attention over a cache of the last tokens, feed-forward layers.

The layers normalize what they read, not what they give (pre-norm: Xiong et al. 2020, https://arxiv.org/abs/2002.04745).

Shapes: B batch, T tokens of a window, S source length, K keys, C context, E width, H heads, D width of a head.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rnnlm.nn.dropout import MaskContext, dropout, locked_mask
from rnnlm.nn.state import State

_LOWEST_FREQUENCY = 1e-4
"""Of the rotation, in radians a position; the highest is 1."""
_DROPPED = -1e4
"""Added to the score of a dropped key. It is finite, so that a token all of whose keys are dropped sees them all."""
_UNSEEN = -1e9
"""Added to the score of a key that a token must not see: beside any other its weight is zero. Finite, so that nothing is
undefined where a row has no key at all.
"""
_BLOCK = 128
"""Tokens of a window that attend together where each sees only the last ones before it."""
_ATTENTION_SITE = 100_000
"""Places of dropout on attention: so much beyond those of the features."""


class Rotation(NamedTuple):
    """Angles of a window's positions: cosine and sine, [B or 1, T, 1, D / 2]."""

    cosine: Tensor
    sine: Tensor

    def __call__(self, x_BTHD: Tensor) -> Tensor:
        """Turn pairs of features, the i-th of either half, by their angle."""
        left, right = x_BTHD.chunk(2, dim=-1)
        cosine, sine = self.cosine.to(left.dtype), self.sine.to(left.dtype)
        return torch.cat([left * cosine - right * sine, left * sine + right * cosine], dim=-1)


def rotation(position_B: Tensor, length: int, head_size: int) -> Rotation:
    """Rotary positions of Su et al. (2021), https://arxiv.org/abs/2104.09864.

    The product of a query and a key that are both turned depends on how far apart they are, not on where they stand.

    Args:
        position_B: int64, where each row's window begins.
        length: T.
        head_size: D, even.
    """
    exponents = torch.arange(0, head_size, 2, device=position_B.device, dtype=torch.float64) / head_size
    frequency = _LOWEST_FREQUENCY**exponents
    # The angle of a sum, so that sines are taken of B + T positions, not of B * T.
    start = (position_B[:, None] * frequency)[:, None, None]
    inside = (torch.arange(length, device=position_B.device)[:, None] * frequency)[None, :, None]
    cos_b, sin_b, cos_t, sin_t = (x.float() for x in (start.cos(), start.sin(), inside.cos(), inside.sin()))
    return Rotation(cos_b * cos_t - sin_b * sin_t, sin_b * cos_t + cos_b * sin_t)


class KeyDropout:
    """Dropout on attention: each head of a row does not see a share of the keys, in a training step the same for all queries.

    The weights of the others still sum to one. It is the column variant of Zehui et al., "DropAttention" (2019),
    https://arxiv.org/abs/1907.11065. A mask for every query and key would be as many hashes as there are scores, and the
    generator that torch's kernels draw from would make the masks depend on how a batch is split.

    Args:
        share: of the keys.
        site: number of the place in the network.
    """

    def __init__(self, share: float, site: int) -> None:
        self.share = share
        self.site = site

    def __call__(self, num_heads: int, num_keys: int, masks: MaskContext | None) -> Tensor | None:
        """What is added to scores, [B, H, 1, K]; None: nothing."""
        if masks is None or not self.share:
            return None
        # A key's number comes first, so that padding behind a source changes nothing.
        kept_BN = locked_mask(num_keys * num_heads, self.share, masks, self.site)
        dropped_BKH = (kept_BN == 0).view(-1, num_keys, num_heads) * _DROPPED
        return dropped_BKH.transpose(1, 2)[:, :, None]


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of a window's tokens to themselves and what came before.

    Args:
        width: E.
        num_heads: H; E is a multiple of 2 H.
        drop: keys in training.
    """

    def __init__(self, *, width: int, num_heads: int, drop: KeyDropout) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.drop = drop
        self.read = nn.Linear(width, 3 * width, bias=False)
        self.give = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x_BTE: Tensor,
        turn: Rotation,
        unseen: Tensor | None,
        cache: State | None = None,
        masks: MaskContext | None = None,
    ) -> tuple[Tensor, State]:
        """Attend.

        Args:
            x_BTE: the window.
            turn: by the positions of the window.
            unseen: [B or 1, 1, T, K], from `unseen_mask`; which keys a token does not see. None: all see all. With a cache no
                token may see further back than K - T keys, as after `sliding_window`.
            cache: `keys` and `values` [B, K - T, E] of earlier tokens.
            masks: what dropout depends on.

        Returns:
            What is read [B, T, E], and the cache with the window behind it, [B, K, E].
        """
        shape = (*x_BTE.shape[:2], self.num_heads, -1)
        query, key, value = (part.view(shape) for part in self.read(x_BTE).chunk(3, dim=-1))
        query, key, value_BTE = turn(query), turn(key).flatten(2), value.flatten(2)
        if cache is not None:
            key = torch.cat([cache["keys"].to(key.dtype), key], dim=1)
            value_BTE = torch.cat([cache["values"].to(value_BTE.dtype), value_BTE], dim=1)
        dropped = self.drop(self.num_heads, key.shape[1], masks)
        key_BHKD, value_BHKD = _heads(key, self.num_heads), _heads(value_BTE, self.num_heads)
        if cache is None or unseen is None:
            read_BTE = _attend(query, key_BHKD, value_BHKD, unseen, dropped)
        else:
            read_BTE = _attend_nearby(query, key_BHKD, value_BHKD, unseen, dropped)
        return self.give(read_BTE), State({"keys": key, "values": value_BTE})


class CrossAttention(nn.Module):
    """Multi-head attention to an encoded source.

    Args:
        width: E.
        num_heads: H.
        drop: keys in training.
    """

    def __init__(self, *, width: int, num_heads: int, drop: KeyDropout) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.drop = drop
        self.query = nn.Linear(width, width, bias=False)
        self.read = nn.Linear(width, 2 * width, bias=False)
        self.give = nn.Linear(width, width, bias=False)

    def prepare(self, memory_BSE: Tensor) -> State:
        """Keys and values of a source, [B, S, E] each, which serve every query."""
        keys, values = self.read(memory_BSE).chunk(2, dim=-1)
        return State({"keys": keys, "values": values})

    def forward(self, x_BTE: Tensor, prepared: State, unseen: Tensor, masks: MaskContext | None = None) -> Tensor:
        """What is read, [B, T, E].

        Args:
            x_BTE: the queries.
            prepared: what `prepare` gave.
            unseen: [B, 1, 1, S], from `unseen_mask`; which positions are padding.
            masks: what dropout depends on.
        """
        query = self.query(x_BTE).view(*x_BTE.shape[:2], self.num_heads, -1)
        key, value = (_heads(prepared[name].to(query.dtype), self.num_heads) for name in ("keys", "values"))
        dropped = self.drop(self.num_heads, key.shape[2], masks)
        read_BTE: Tensor = self.give(_attend(query, key, value, unseen, dropped))
        return read_BTE


class FeedForward(nn.Module):
    """Two layers with GELU between them.

    Args:
        width: E.
        inner_width: of the layer between.
    """

    def __init__(self, *, width: int, inner_width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, inner_width)
        self.narrow = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., E] to [..., E]."""
        narrowed: Tensor = self.narrow(nn.functional.gelu(self.widen(x)))
        return narrowed


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention where there is a source, feed-forward; each adds to what it reads.

    Args:
        width: E.
        num_heads: H.
        inner_width: of the feed-forward layer.
        has_source: whether there is cross-attention.
        share: of features dropped from what each part adds.
        key_share: of keys dropped in attention.
        first_site: number of the layer's first place of dropout; it has three, and two more for attention.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        inner_width: int,
        has_source: bool,
        share: float,
        key_share: float,
        first_site: int,
    ) -> None:
        super().__init__()
        own, other = (KeyDropout(key_share, _ATTENTION_SITE + first_site + place) for place in range(2))
        self.share = share
        self.first_site = first_site
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = SelfAttention(width=width, num_heads=num_heads, drop=own)
        self.cross_norm = nn.LayerNorm(width) if has_source else None
        self.cross_attention = CrossAttention(width=width, num_heads=num_heads, drop=other) if has_source else None
        self.inner_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width=width, inner_width=inner_width)

    def prepare(self, memory_BSE: Tensor) -> State:
        """What cross-attention needs of a source."""
        assert self.cross_attention is not None
        return self.cross_attention.prepare(memory_BSE)

    def forward(
        self,
        x_BTE: Tensor,
        turn: Rotation,
        unseen: Tensor | None,
        *,
        cache: State | None = None,
        source: State | None = None,
        source_unseen: Tensor | None = None,
        masks: MaskContext | None = None,
    ) -> tuple[Tensor, State]:
        """One layer over a window; see `SelfAttention` and `CrossAttention` for the arguments.

        The source may have fewer rows than the window: then as many rows of the window belong to each of them, side by side.

        Returns:
            The window [B, T, E], and the layer's cache.
        """
        read, cache = self.self_attention(self.self_norm(x_BTE), turn, unseen, cache, masks)
        x_BTE = x_BTE + dropout(read, self.share, masks, self.first_site)
        if self.cross_attention is not None and self.cross_norm is not None:
            assert source is not None
            assert source_unseen is not None
            # Rows of one source, as in a beam, ask it together, as if they were tokens of one row.
            query_BTE = self.cross_norm(x_BTE).reshape(source.num_rows, -1, x_BTE.shape[2])
            read = self.cross_attention(query_BTE, source, source_unseen, masks).view(x_BTE.shape)
            x_BTE = x_BTE + dropout(read, self.share, masks, self.first_site + 1)
        inner = self.feed_forward(self.inner_norm(x_BTE))
        return x_BTE + dropout(inner, self.share, masks, self.first_site + 2), cache


class TransformerLayers(nn.ModuleList):
    """A stack of layers with fresh weights, normal with deviation 0.02, smaller by sqrt(2 L) where a layer adds to what it
    reads (Radford et al. 2019, section 2.3).

    Args:
        num_layers: L.
        first_site: layer l has this place of dropout + 4 l, and the next two.
        make: a layer of the stack from its `first_site`.
    """

    def __init__(self, num_layers: int, first_site: int, make: Callable[..., TransformerLayer]) -> None:
        super().__init__(make(first_site=first_site + 4 * layer) for layer in range(num_layers))
        self._reset()

    def __iter__(self) -> Iterator[TransformerLayer]:
        return cast("Iterator[TransformerLayer]", super().__iter__())

    @torch.no_grad()
    def _reset(self) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                is_adding = name.endswith((".give", ".narrow"))
                layer.weight.normal_(0, 0.02 / ((2 * len(self)) ** 0.5 if is_adding else 1))
                if layer.bias is not None:
                    layer.bias.zero_()


def sliding_window(filled_B: Tensor, length: int, context: int) -> Tensor:
    """Whether each token of a window sees each key: itself and the C - 1 before it, bool [B, 1, T, C - 1 + T].

    Args:
        filled_B: int64; keys of the cache [B, C - 1] that are real, which are its last ones.
        length: T.
        context: C.
    """
    device = filled_B.device
    key = torch.arange(context - 1 + length, device=device)
    distance = torch.arange(length, device=device)[:, None] + (context - 1) - key
    near = (distance >= 0) & (distance < context)
    real = key >= (context - 1) - filled_B[:, None]
    return (near & real[:, None])[:, None]


def unseen_mask(seen: Tensor) -> Tensor:
    """What is added to scores so that only the keys are seen that `seen`, bool, says."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, _UNSEEN)


def _heads(x_BKE: Tensor, num_heads: int) -> Tensor:
    return x_BKE.view(*x_BKE.shape[:2], num_heads, -1).transpose(1, 2)


def _attend_nearby(
    query_BTHD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, unseen_BHTK: Tensor, dropped_BH1K: Tensor | None
) -> Tensor:
    """As `_attend`, where the t-th token sees keys from the t-th to the one at its own position only: a block of tokens at a
    time, with no product for keys that none of the block sees.
    """
    length, num_keys = query_BTHD.shape[1], key_BHKD.shape[2]
    parts: list[Tensor] = []
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        keys = slice(start, stop + num_keys - length)
        dropped = None if dropped_BH1K is None else dropped_BH1K[..., keys]
        unseen = unseen_BHTK[:, :, start:stop, keys]
        parts.append(_attend(query_BTHD[:, start:stop], key_BHKD[:, :, keys], value_BHKD[:, :, keys], unseen, dropped))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend(
    query_BTHD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, unseen: Tensor | None, dropped: Tensor | None
) -> Tensor:
    """What is read by all heads, [B, T, E]."""
    query_BHTD = query_BTHD.transpose(1, 2)
    added = [mask.to(query_BHTD.dtype) for mask in (unseen, dropped) if mask is not None]
    if query_BHTD.device.type == "cpu" and query_BHTD.dtype == torch.bfloat16:
        # Forward and backward pass of torch's fused kernel take twice the time of these products on a CPU.
        scores_BHTK = (query_BHTD * query_BHTD.shape[-1] ** -0.5) @ key_BHKD.transpose(2, 3)
        for mask in added:
            scores_BHTK += mask
        read_BHTD: Tensor = scores_BHTK.softmax(-1).to(value_BHKD.dtype) @ value_BHKD
    else:
        total: Tensor | None = sum(added[1:], start=added[0]) if added else None
        read_BHTD = nn.functional.scaled_dot_product_attention(query_BHTD, key_BHKD, value_BHKD, attn_mask=total)
    return read_BHTD.transpose(1, 2).flatten(2)
