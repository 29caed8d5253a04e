"""The network of Boes & Van hamme 2022: sound event detection with partial visual assistance.

W. Boes, H. Van hamme, "Multi-encoder attention-based architectures for sound recognition with partial visual
assistance", EURASIP J. Audio, Speech, Music Proc., 2022. Cited below as "Boes 2022".

    log-mel (B, 512, 64) -> CNN -> (B, 64, 128) -+-> acoustic encoder --+
                                                 |                      v
                                                 +-> [frames, token] -> decoder -> frame logits (B, 64, C)
                                                                        ^          clip logits  (B, C)
    video (B, 64, D), where it still exists -----> visual encoder ------+

This file holds networks only: no files are read and nothing is trained here. It runs when copied alone (torch).

Shapes: B clips, T = 64 frames, D width of a visual vector, C classes, E encoders (the first one hears, the others see),
Q queries, M memory vectors.

Our choices where the paper is silent (marked `# ours:` below):
 1. CNN stacks 5-7 have 128 channels; two of them halve the frequency axis, the last one pools nothing.
 2. Batch norm "momentum 0.9" means running = 0.9 old + 0.1 batch, which PyTorch calls momentum=0.1.
 3. Each of the three heads is 128 wide, the concatenation is 384.
 4. One CNN serves the acoustic encoder and the decoder.
 5. Relative positions: one learnable table; all pairs that involve the classification token share one row.
 6. The copies of a cross-attention share one layer norm before them and one residual around their weighted sum.
 7. One linear layer classifies the frames and the token alike.
 8. Clips without a stream are left out of its encoder: nothing stored for them can reach anything.
"""

import torch
from torch import nn
from torch.nn import functional as F

FRAMES = 64  # T: vectors per 10 s clip, acoustic and visual (Boes 2022, Sec. 3.1.2)
MELS = 64  # frequency bins of the log-mel map (Boes 2022, Sec. 3.1.2)
WIDTH = 128  # of every vector inside the model (Boes 2022, Sec. 2.1.1)
HEADS = 3  # Boes 2022, Sec. 2.1.1
KEY = 128  # d_k of Eq. 1; ours: each head is this wide
HIDDEN = 512  # ReLU units of the feedforward part (Boes 2022, Sec. 2.1.1)
CNN_STACKS = (  # channels in, out, pooling of (time, frequency) (Boes 2022, Table 3)
    (1, 16, (2, 2)),
    (16, 32, (2, 2)),
    (32, 64, (2, 2)),
    (64, 128, (1, 2)),
    (128, 128, (1, 2)),  # ours, from here on: two more halvings and one stack without pooling
    (128, 128, (1, 2)),
    (128, 128, (1, 1)),
)
BLOCKS = 3  # per encoder, and in the decoder (Boes 2022, Sec. 2.1.1)
DROPOUT = 0.1  # everywhere (Boes 2022, Sec. 2.1.1, 2.1.2, 3.1.2)
CONV_KERNEL = 7  # depthwise convolution of the conformer (Boes 2022, Sec. 2.1.2)
# Boes 2022 says 0.9, which is the weight of the old statistics; PyTorch's argument is the weight of the new batch
BN_MOMENTUM = 0.1
TOKEN_ROW = 2 * FRAMES - 1  # ours: row 127 of the relative table; rows 0..126 are the distances -63..63


def keep_at_random(x, rate):
    """Which elements of a CPU tensor dropout keeps: bool, like x, and the factor that makes up for the others.

    ours: decided by 16 random bits an element. PyTorch draws a double for each there, which took a third of the
    training time. The rate is rounded to a multiple of 1 / 65536 (0.1 becomes 0.100006), and the factor agrees.
    """
    n, dropped = x.numel(), round(rate * 2**16)
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    bits = bits[:n].as_strided(x.shape, torch.empty_like(x, device="meta").stride())  # in x's own memory order
    return bits >= dropped - 2**15, 1 / (1 - dropped / 2**16)


class Dropout(nn.Dropout):
    """Dropout as usual, with fewer random bits on a CPU"""

    def forward(self, x):
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        keep, factor = keep_at_random(x, self.p)
        return (x * keep).mul_(factor)


class ReLUDropoutPool(torch.autograd.Function):
    """ReLU, dropout and average pooling at once, with their gradient, for training on a CPU.

    ours: apart they keep two copies of the largest arrays of all for the way back, together a byte an element: was it
    positive and kept? With 128 clips that is 1 GB less.
    """

    @staticmethod
    def forward(ctx, x, rate, pool):
        keep, factor = keep_at_random(x, rate)
        keep &= x > 0
        ctx.save_for_backward(keep)
        ctx.pool, ctx.factor = pool, factor / (pool[0] * pool[1])
        return F.avg_pool2d(x * keep, pool).mul_(factor)

    @staticmethod
    def backward(ctx, gradient):
        (keep,) = ctx.saved_tensors
        spread = F.interpolate(gradient * ctx.factor, scale_factor=ctx.pool)  # to all elements that were averaged
        return spread.mul_(keep), None, None


class ConvStack(nn.Sequential):
    """One stack of the acoustic front end (Boes 2022, Sec. 3.1.2)"""

    def __init__(self, n_in, n_out, pool):
        super().__init__(
            nn.Conv2d(n_in, n_out, kernel_size=3, padding=1),  # ours: padding, without it the sizes do not work out
            nn.BatchNorm2d(n_out, momentum=BN_MOMENTUM),
            nn.ReLU(inplace=True),
            Dropout(DROPOUT),
            nn.AvgPool2d(pool),
        )

    def forward(self, x):
        conv, norm, _, dropout, pool = self
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        return ReLUDropoutPool.apply(norm(conv(x)), dropout.p, pool.kernel_size)


def conv_net():
    """Acoustic front end: (B, 1, 512, 64) -> (B, 128, 64, 1)"""
    return nn.Sequential(*(ConvStack(*stack) for stack in CNN_STACKS))


def relative_rows(n_queries, n_keys):
    """Row of the relative-position table for each (query, key) pair -> (Q, M) int64.

    Frames by their distance in time (acoustic and visual frames share one grid, so this holds across streams too);
    any pair with the token, index 64, uses a row of its own: the token has no place in time.
    """
    i, j = torch.arange(n_queries)[:, None], torch.arange(n_keys)[None, :]
    return torch.where((i == FRAMES) | (j == FRAMES), TOKEN_ROW, i - j + FRAMES - 1)


class Attention(nn.Module):
    """Multi-head attention (Boes 2022, Sec. 2.1.1, Eq. 1), with relative positions if asked for (Sec. 2.1.2).

    forward: query (B, Q, 128), memory (B, M, 128) -> (B, Q, 128)
    """

    def __init__(self, relative=False):
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * KEY)
        self.key = nn.Linear(WIDTH, HEADS * KEY)
        self.value = nn.Linear(WIDTH, HEADS * KEY)
        self.output = nn.Linear(HEADS * KEY, WIDTH)
        self.dropout = Dropout(DROPOUT)
        self.relative = relative
        if relative:  # Transformer-XL's biases u, w and a learnable table r of distances
            self.content_bias = nn.Parameter(torch.zeros(HEADS, 1, KEY))
            self.position_bias = nn.Parameter(torch.zeros(HEADS, 1, KEY))
            self.distances = nn.Parameter(0.02 * torch.randn(HEADS, 2 * FRAMES, KEY))
            self.register_buffer("rows", relative_rows(FRAMES + 1, FRAMES + 1), persistent=False)

    def split_heads(self, x):
        return x.unflatten(-1, (HEADS, KEY)).transpose(1, 2)  # (B, L, 384) -> (B, 3, L, 128)

    def forward(self, query, memory):
        q = self.split_heads(self.query(query))
        k, v = self.split_heads(self.key(memory)), self.split_heads(self.value(memory))
        if self.relative:  # ((q + u) k + (q + w) r) / sqrt(d_k)
            by_row = (q + self.position_bias) @ self.distances.transpose(-1, -2)  # (B, 3, Q, 128 rows)
            rows = self.rows[: q.shape[2], : k.shape[2]].expand(*q.shape[:3], -1)
            scores = (q + self.content_bias) @ k.transpose(-1, -2) + by_row.gather(-1, rows)  # (B, 3, Q, M)
        else:
            scores = q @ k.transpose(-1, -2)  # (B, 3, Q, M)
        weights = self.dropout((scores / KEY**0.5).softmax(-1))
        heads = (weights @ v).transpose(1, 2).flatten(2)  # (B, Q, 384)
        return self.dropout(self.output(heads))


def feed_forward(activation):
    """Pre-norm feedforward part (Boes 2022, Sec. 2.1.1): 512 units, then 128 linear ones, dropout after both."""
    return nn.Sequential(
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, HIDDEN),
        activation,
        Dropout(DROPOUT),
        nn.Linear(HIDDEN, WIDTH),
        Dropout(DROPOUT),
    )


class ConvModule(nn.Module):
    """Convolution part of a conformer block (Boes 2022, Sec. 2.1.2): (B, L, 128) -> (B, L, 128)."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)  # ours: first, as in the original conformer
        self.pointwise_in = nn.Linear(WIDTH, 2 * WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, CONV_KERNEL, padding=CONV_KERNEL // 2, groups=WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH, momentum=BN_MOMENTUM)
        self.pointwise_out = nn.Linear(WIDTH, WIDTH)
        self.dropout = Dropout(DROPOUT)

    def forward(self, x):
        x = F.glu(self.pointwise_in(self.norm(x)))
        x = self.depthwise(x.transpose(1, 2))  # (B, 128, L); ours: in the decoder the token is the last step
        x = self.batch_norm(x)
        return self.dropout(self.pointwise_out(F.silu(x).transpose(1, 2)))


class CrossAttention(nn.Module):
    """Decoder cross-attention with one copy per encoder, interpolated clip by clip (Boes 2022, Sec. 2.2, Fig. 4).

    This is the paper's idea. Every decoder block looks at every encoder through a copy of its own, and the copies'
    outputs are summed with weights that add up to one for each clip:

        sum_e weights[:, e] * Attention_e(LN(x), memory_e)

    Where a clip lacks a stream its weight is zero and the others are rescaled (`interpolation_weights`), so a batch may
    mix clips with and without video and the clip without is treated as the audio-only model would treat it.
    """

    def __init__(self, n_encoders, relative=False):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)  # ours: one norm, shared by the copies
        self.copies = nn.ModuleList(Attention(relative) for _ in range(n_encoders))

    def forward(self, x, memories, weights):
        """x (B, Q, 128), memories of the encoders (see `MultiEncoder.encode`), weights (B, E) -> (B, Q, 128)"""
        y = self.norm(x)
        heard, *seen = memories
        total = (weights[:, 0, None, None] * self.copies[0](y, heard)).to(x.dtype)
        for e, (rows, memory) in enumerate(seen, 1):
            if len(rows):  # only clips that have the stream: zero times NaN would be NaN, so nothing is multiplied away
                share = weights[rows, e, None, None] * self.copies[e](y.index_select(0, rows), memory)
                total = total.index_add(0, rows, share.to(x.dtype))
        return total


class TransformerBlock(nn.Module):
    """Pre-norm transformer block (Boes 2022, Sec. 2.1.1): of an encoder, or with n_encoders > 0 of the decoder."""

    def __init__(self, n_encoders=0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.cross = CrossAttention(n_encoders) if n_encoders else None
        self.feed_forward = feed_forward(nn.ReLU(inplace=True))

    def forward(self, x, memories=(), weights=None):
        y = self.attention_norm(x)
        x = x + self.attention(y, y)
        if self.cross:
            x = x + self.cross(x, memories, weights)
        return x + self.feed_forward(x)


class ConformerBlock(nn.Module):
    """Conformer block (Boes 2022, Sec. 2.1.2): of an encoder, or with n_encoders > 0 of the decoder."""

    def __init__(self, n_encoders=0):
        super().__init__()
        self.feed_forward_in = feed_forward(nn.SiLU())
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention(relative=True)
        self.cross = CrossAttention(n_encoders, relative=True) if n_encoders else None
        self.convolution = ConvModule()
        self.feed_forward_out = feed_forward(nn.SiLU())
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, memories=(), weights=None):
        x = x + 0.5 * self.feed_forward_in(x)
        y = self.attention_norm(x)
        x = x + self.attention(y, y)
        if self.cross:
            x = x + self.cross(x, memories, weights)
        x = x + self.convolution(x)
        x = x + 0.5 * self.feed_forward_out(x)
        return self.norm(x)


class Stack(nn.Module):
    """Three blocks in a row: an encoder (n_encoders = 0) or the decoder, with the positions that they need.

    Transformer: learnable absolute positions before, a layer norm behind (ours: pre-norm blocks leave their sum
    unnormalised). Conformer: neither, its attention knows distances and its blocks end in a norm.
    """

    def __init__(self, base, n_encoders=0):
        super().__init__()
        transformer = base == "transformer"
        block = TransformerBlock if transformer else ConformerBlock
        self.positions = nn.Parameter(0.02 * torch.randn(FRAMES, WIDTH)) if transformer else None
        self.blocks = nn.ModuleList(block(n_encoders) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH) if transformer else nn.Identity()

    def forward(self, x, token=None, memories=(), weights=None):
        """x (B, 64, 128), token (128) or None -> (B, 64, 128), or (B, 65, 128) with the token's output last"""
        if self.positions is not None:
            x = x + self.positions
        if token is not None:  # ours: without a position, the token is learnable itself
            x = torch.cat([x, token.expand(len(x), 1, WIDTH).to(x.dtype)], dim=1)
        for block in self.blocks:
            x = block(x, memories, weights)
        return self.norm(x)


def interpolation_weights(audio_weight, present):
    """Weights of the E encoders for each clip (Boes 2022, Sec. 2.2): (B, E), rows sum to one.

    audio_weight: share of the acoustic encoder, 0 < audio_weight <= 1; the rest is split equally over the visual
    streams (Sec. 3.2.3). present (B, E-1) bool: a missing stream gets 0 and the others are rescaled to one.
    """
    assert 0 < audio_weight <= 1, f"the acoustic encoder needs a weight in (0, 1], got {audio_weight}"
    n_visual = present.shape[1]
    share = torch.full_like(present, (1 - audio_weight) / max(n_visual, 1), dtype=torch.float32)
    weights = torch.cat([share.new_full((len(share), 1), audio_weight), share * present], 1)
    return weights / weights.sum(1, keepdim=True)


class MultiEncoder(nn.Module):
    """Multi-encoder transformer or conformer for clips of 10 s (Boes 2022, Sec. 2).

    n_classes: C
    visual_dims: dict of stream name -> width D of its vectors; empty: the audio-only model (one encoder and decoder)
    base: "transformer" (Sec. 2.1.1) or "conformer" (Sec. 2.1.2)
    """

    def __init__(self, n_classes, visual_dims, base="transformer"):
        super().__init__()
        assert base in ("transformer", "conformer"), f"base must be transformer or conformer, not {base!r}"
        self.streams = list(visual_dims)
        self.cnn = conv_net()
        self.audio_encoder = Stack(base)
        # The vectors themselves come from pretrained networks that stay fixed (Boes 2022, Sec. 3.1.2).
        # ours: a linear map with dropout, as in the authors' earlier audiovisual transformer (Boes 2019, Sec. 2.2.2)
        self.visual_inputs = nn.ModuleList(
            nn.Sequential(nn.Linear(d, WIDTH), Dropout(DROPOUT)) for d in visual_dims.values()
        )
        self.visual_encoders = nn.ModuleList(Stack(base) for _ in visual_dims)
        self.token = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.decoder = Stack(base, n_encoders=1 + len(visual_dims))
        self.classifier = nn.Linear(WIDTH, n_classes)

    def forward(self, log_mel, visual, present, audio_weight):
        """Frame logits (B, 64, C) and clip logits (B, C); probabilities are their sigmoid.

        log_mel (B, 512, 64): standardised, time first
        visual: dict of stream name -> (B, 64, D), standardised; rows of clips without the stream may hold anything
        present: dict of stream name -> (B,) bool, True where the clip has the stream; on the CPU, where asking is free
        audio_weight: share of the acoustic encoder in (0, 1]; 1 ignores all video (Boes 2022, Table 7)
        """
        if audio_weight == 1:  # nobody looks at the video, so its encoders need not run
            present = {name: torch.zeros_like(have) for name, have in present.items()}
        return self.decode(*self.encode(log_mel, visual, present), audio_weight)

    def encode(self, log_mel, visual, present):
        """The part that does not depend on the interpolation weights, so several can share it.

        -> features (B, 64, 128); memories: that of the acoustic encoder (B, 64, 128), then per visual encoder the rows
        that it saw and its memory of them (len(rows), 64, 128); have (B, E-1) bool, `present` as one tensor
        """
        assert log_mel.shape[1:] == (8 * FRAMES, MELS), f"log-mel must be (B, 512, 64), got {tuple(log_mel.shape)}"
        features = self.cnn(log_mel[:, None]).squeeze(3).transpose(1, 2)  # (B, 128, 64, 1) -> (B, 64, 128)
        memories = [self.audio_encoder(features)]
        for name, project, encoder in zip(self.streams, self.visual_inputs, self.visual_encoders):
            rows = present[name].nonzero()[:, 0].to(log_mel.device, non_blocking=True)
            memories.append((rows, encoder(project(visual[name][rows])) if len(rows) else None))
        columns = [present[name].to(log_mel.device, non_blocking=True)[:, None] for name in self.streams]
        have = torch.cat([log_mel.new_zeros(len(log_mel), 0, dtype=torch.bool), *columns], 1)
        return features, memories, have

    def decode(self, features, memories, have, audio_weight):
        """What `encode` returned and the share of the acoustic encoder -> frame logits, clip logits"""
        if audio_weight == 1:
            memories = memories[:1]
        weights = interpolation_weights(audio_weight, have)
        outputs = self.decoder(features, self.token, memories, weights)  # (B, 65, 128)
        logits = self.classifier(outputs)
        return logits[:, :FRAMES], logits[:, FRAMES]
