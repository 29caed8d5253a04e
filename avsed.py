"""The network of Boes & Van hamme 2022: sound event detection with partial visual assistance.

W. Boes, H. Van hamme, "Multi-encoder attention-based architectures for sound recognition with partial visual
assistance", EURASIP J. Audio, Speech, Music Proc., 2022. Cited below as "Boes 2022".

    log-mel (B, 512, 64) -> CNN -> (B, 64, 128) -+-> acoustic encoder --+
                                                 |                      v
                                                 +-> [frames, token] -> decoder -> frame logits (B, 64, C)
                                                                        ^          clip logits  (B, C)
    video (B, 64, D), where it still exists -----> visual encoder ------+

Networks only: no files are read and nothing is trained here. The file runs when copied alone (torch).

Shapes: B clips, T = 64 output frames of 0.1565 s (each of 8 log-mel frames), D width of a visual vector, C classes, E
encoders (the first one hears, the others see), Q queries, M memory vectors, L vectors in a row: 64, with the token 65.
Marks: `# Boes 2022, Sec. ...` what the paper says; `# ours: ...` where it leaves a choice.
"""

import torch
from torch import nn
from torch.nn import functional as F

FRAMES = 64  # T: vectors per 10 s clip, acoustic and visual (Boes 2022, Sec. 3.1.2)
MELS = 64  # frequency bins of the log-mel map (Boes 2022, Sec. 3.1.2)
WIDTH = 128  # of every vector inside the model (Boes 2022, Sec. 2.1.1)
HEADS = 3  # Boes 2022, Sec. 2.1.1
KEY = 128  # d_k of Eq. 1; ours: each head is this wide, so the concatenation of the three is 384
HIDDEN = 512  # units of the feedforward part (Boes 2022, Sec. 2.1.1)
CNN_STACKS = (  # channels in, out, pooling of (time, frequency) (Boes 2022, Table 3)
    (1, 16, (2, 2)),
    (16, 32, (2, 2)),
    (32, 64, (2, 2)),
    (64, 128, (1, 2)),
    (128, 128, (1, 2)),  # ours, from here on: Table 3 is cut off in our copy; two more halvings of the frequency axis,
    (128, 128, (1, 2)),
    (128, 128, (1, 1)),  # then one stack without pooling
)
ENCODER_BLOCKS, DECODER_BLOCKS = 3, 3  # Boes 2022, Sec. 2.1.1
# Boes 2022, Sec. 2.1.1, 2.1.2, 3.1.2: in each CNN stack, in each `Attention` on its weights and on its output (one
# module, applied twice), in each `feed_forward` twice, at the end of each `ConvModule`; ours: after each visual input.
# So a conformer block of a decoder with E encoders has 6 + E dropout modules, applied 7 + 2 E times.
DROPOUT = 0.1
CONV_KERNEL = 7  # depthwise convolution of the conformer (Boes 2022, Sec. 2.1.2)
BN_MOMENTUM = 0.1  # Boes 2022, Sec. 3.1.2: 0.9; ours: read as the weight of the old statistics, PyTorch's is of the new
TOKEN_ROW = 2 * FRAMES - 1  # row 127 of the table of relative positions; rows 0..126 are the distances -63..63


def conv_stack(n_in, n_out, pool):
    """One stack of the acoustic front end (Boes 2022, Sec. 3.1.2)"""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel_size=3, padding=1),  # ours: padding, without it the sizes do not work out
        nn.BatchNorm2d(n_out, momentum=BN_MOMENTUM),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.AvgPool2d(pool),
    )


def softmax(scores):
    """Scores of queries and keys (..., Q, M) -> attention weights, which sum to one over the keys (Boes 2022, Eq. 1)"""
    return scores.softmax(-1)


def relative_rows():
    """Row of the table of relative positions for each pair (query, key) of 64 vectors and the token: (65, 65) int64.

    A pair of vectors has the row of its distance in time. Acoustic and visual vectors share one grid to within 16 ms.
    """
    index = torch.arange(FRAMES + 1)
    query, key = index[:, None], index[None, :]
    # ours: any pair with the token, index 64, has a row of its own, since the token has no place in time
    return torch.where((query == FRAMES) | (key == FRAMES), TOKEN_ROW, query - key + FRAMES - 1)


class Attention(nn.Module):
    """Multi-head attention (Boes 2022, Sec. 2.1.1, Eq. 1), with relative positions if asked for (Sec. 2.1.2).

    normalise: turns scores (..., Q, M) into weights; softmax in this paper, Boes & Van hamme 2019 compares three
    forward: query (B, Q, 128), memory (B, M, 128) -> (B, Q, 128)
    """

    def __init__(self, relative=False, normalise=softmax):
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * KEY)
        self.key = nn.Linear(WIDTH, HEADS * KEY)
        self.value = nn.Linear(WIDTH, HEADS * KEY)
        self.output = nn.Linear(HEADS * KEY, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)
        self.normalise = normalise
        self.relative = relative
        if relative:  # biases of content (u) and position (w), as in Transformer-XL, to which Boes 2022 refers
            self.content_bias = nn.Parameter(torch.zeros(HEADS, 1, KEY))
            self.position_bias = nn.Parameter(torch.zeros(HEADS, 1, KEY))
            # r: for each head a learnable vector for each distance; ours: used as it is, without a linear map before
            self.distances = nn.Parameter(0.02 * torch.randn(HEADS, 2 * FRAMES, KEY))
            self.register_buffer("rows", relative_rows(), persistent=False)

    def forward(self, query, memory):
        attention = self.dropout(self.attention_weights(query, memory))
        heads = attention @ self.split_heads(self.value(memory))  # (B, 3, Q, 128)
        return self.dropout(self.output(heads.transpose(1, 2).flatten(2)))  # (B, Q, 128)

    def attention_weights(self, query, memory):
        """What each query attends to: (B, 3, Q, M)"""
        q, k = self.split_heads(self.query(query)), self.split_heads(self.key(memory))
        if not self.relative:
            scores = q @ k.transpose(-1, -2)
        else:  # (q + u) k + (q + w) r, with r by the distance of query and key
            content = (q + self.content_bias) @ k.transpose(-1, -2)  # (B, 3, Q, M)
            by_row = (q + self.position_bias) @ self.distances.transpose(-1, -2)  # (B, 3, Q, 128 rows)
            n = max(q.shape[2], k.shape[2])
            assert n <= len(self.rows), f"relative positions are of 64 frames and the token, not of {n} vectors"
            rows = self.rows[: q.shape[2], : k.shape[2]].expand(*q.shape[:3], -1)  # (B, 3, Q, M)
            scores = content + by_row.gather(-1, rows)
        return self.normalise(scores / KEY**0.5)

    def split_heads(self, x):
        return x.unflatten(-1, (HEADS, KEY)).transpose(1, 2)  # (B, L, 384) -> (B, 3, L, 128)


def feed_forward(activation):
    """Feedforward part (Boes 2022, Sec. 2.1.1): 512 units, then 128 linear ones, dropout after both.

    The layer norm comes first ("pre-norm"), as in Xiong et al. 2020, whom the paper cites for its blocks.
    """
    return nn.Sequential(
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, HIDDEN),
        activation,
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, WIDTH),
        nn.Dropout(DROPOUT),
    )


class ConvModule(nn.Module):
    """Convolution part of a conformer block (Boes 2022, Sec. 2.1.2): (B, L, 128) -> (B, L, 128)"""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)  # ours: first, as in the original conformer
        self.pointwise_in = nn.Linear(WIDTH, 2 * WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, CONV_KERNEL, padding=CONV_KERNEL // 2, groups=WIDTH)
        self.batch_norm = nn.BatchNorm1d(WIDTH, momentum=BN_MOMENTUM)
        self.pointwise_out = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x):
        x = F.glu(self.pointwise_in(self.norm(x)))  # a pointwise convolution is a linear map of each step
        x = self.depthwise(x.transpose(1, 2))  # (B, 128, L); ours: in the decoder the token is the last step
        x = F.silu(self.batch_norm(x)).transpose(1, 2)  # swish
        return self.dropout(self.pointwise_out(x))


class CrossAttention(nn.Module):
    """Decoder cross-attention with one copy per encoder, interpolated clip by clip (Boes 2022, Sec. 2.2, Fig. 4).

    Every decoder block asks each encoder separately, through a cross-attention of its own: all "copies" are built
    alike, each has its own parameters. It takes a weighted average of the answers, whose weights add up to one for each
    clip (the framework of Lohrenz et al. 2021):

        sum_e weights[:, e] * copy_e(norm(x), memory_e)

    New in this paper: where a clip lacks a stream its weight is zero and the others are rescaled, in training and in
    testing (`interpolation_weights`). So a batch may mix clips with and without video, and a clip without is treated as
    with all the weight on the acoustic encoder. Whole streams are missing, never single time steps. Memories must be
    finite even where their weight is zero, since 0 * NaN is NaN (`MultiEncoder.encode` sees to it).

    To use such masked cross-attention elsewhere, copy this class, Attention, softmax, interpolation_weights and the
    constants WIDTH, HEADS, KEY, DROPOUT; for relative positions also relative_rows, FRAMES, TOKEN_ROW. These are of 64
    frames and the token, so queries and memories have at most 65 rows; without them, any number.
    """

    def __init__(self, n_encoders, relative=False):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)  # ours: one norm, shared by the copies
        self.copies = nn.ModuleList(Attention(relative) for _ in range(n_encoders))

    def forward(self, x, memories, weights):
        """x (B, Q, 128), memories: E times (B, 64, 128), weights (B, E) -> (B, Q, 128)"""
        y = self.norm(x)
        weights = weights.to(y.dtype)  # so that .half() is half everywhere
        return sum(weights[:, e, None, None] * copy(y, memories[e]) for e, copy in enumerate(self.copies))

    def attention_weights(self, x, memories):
        """What each copy attends to, for plots: (B, E, 3, Q, M); memories of one length M"""
        y = self.norm(x)
        return torch.stack([copy.attention_weights(y, memory) for copy, memory in zip(self.copies, memories)], 1)


class TransformerBlock(nn.Module):
    """Transformer block (Boes 2022, Sec. 2.1.1): of an encoder, or with n_encoders > 0 of the decoder"""

    def __init__(self, n_encoders=0):
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.cross = CrossAttention(n_encoders) if n_encoders else None
        self.feed_forward = feed_forward(nn.ReLU())

    def forward(self, x, memories=(), weights=None):
        y = self.attention_norm(x)
        x = x + self.attention(y, y)
        if self.cross:
            x = x + self.cross(x, memories, weights)  # ours: one residual around the sum of the copies
        return x + self.feed_forward(x)


class ConformerBlock(nn.Module):
    """Conformer block (Boes 2022, Sec. 2.1.2): of an encoder, or with n_encoders > 0 of the decoder"""

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
            x = x + self.cross(x, memories, weights)  # right after self-attention
        x = x + self.convolution(x)
        x = x + 0.5 * self.feed_forward_out(x)
        return self.norm(x)


class Stack(nn.Module):
    """A whole encoder, or with n_encoders > 0 the whole decoder: blocks in a row, and the positions that they need"""

    def __init__(self, base, n_blocks, n_encoders=0):
        super().__init__()
        transformer = base == "transformer"
        block = TransformerBlock if transformer else ConformerBlock
        # a transformer needs learnable absolute positions (Boes 2022, Sec. 2.1.1), a conformer has relative ones;
        # ours: each encoder and the decoder have their own
        self.positions = nn.Parameter(0.02 * torch.randn(FRAMES, WIDTH)) if transformer else None
        self.blocks = nn.ModuleList(block(n_encoders) for _ in range(n_blocks))
        # ours: pre-norm blocks leave their sum unnormalised, so a norm closes the stack; conformer blocks end in one
        self.norm = nn.LayerNorm(WIDTH) if transformer else nn.Identity()

    def forward(self, x, token=None, memories=(), weights=None):
        """x (B, 64, 128), token (128) or None -> (B, 64, 128), or (B, 65, 128) with the token's output last

        Of the decoder alone: memories E times (B, 64, 128), weights (B, E)
        """
        if self.positions is not None:
            x = x + self.positions
        if token is not None:  # ours: appended after the positions are added, so it has none; it is learnable itself
            x = torch.cat([x, token.expand(len(x), 1, WIDTH).to(x.dtype)], dim=1)  # under autocast x may be bfloat16
        for block in self.blocks:
            x = block(x, memories, weights)
        return self.norm(x)


def interpolation_weights(audio_weight, present):
    """Weights of the E encoders for each clip (Boes 2022, Sec. 2.2): (B, E), rows sum to one.

    audio_weight: share of the acoustic encoder, 0 < audio_weight <= 1; the rest is split equally over the visual
    streams (Sec. 3.2.3). present (B, E-1) bool: which streams each clip has. A missing one gets 0 and the others are
    rescaled to one.
    """
    assert 0 < audio_weight <= 1, f"the acoustic encoder needs a weight in (0, 1], got {audio_weight}"
    n_visual = present.shape[1]
    of_audio = torch.full((len(present), 1), audio_weight, device=present.device)
    of_visual = (1 - audio_weight) / max(n_visual, 1) * present  # (B, E-1)
    weights = torch.cat([of_audio, of_visual], 1)
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
        self.cnn = nn.Sequential(*(conv_stack(*stack) for stack in CNN_STACKS))
        self.audio_encoder = Stack(base, ENCODER_BLOCKS)
        # The vectors themselves come from pretrained networks that stay fixed (Boes 2022, Sec. 3.1.2).
        # ours: a linear map with dropout, as in the authors' earlier audiovisual transformer (Boes & Van hamme 2019)
        self.visual_inputs = nn.ModuleList(
            nn.Sequential(nn.Linear(d, WIDTH), nn.Dropout(DROPOUT)) for d in visual_dims.values()
        )
        self.visual_encoders = nn.ModuleList(Stack(base, ENCODER_BLOCKS) for _ in visual_dims)
        self.token = nn.Parameter(0.02 * torch.randn(WIDTH))  # for classification (Boes 2022, Sec. 2.1.1)
        self.decoder = Stack(base, DECODER_BLOCKS, n_encoders=1 + len(visual_dims))
        self.classifier = nn.Linear(WIDTH, n_classes)  # ours: one for the frames and the token alike

    def forward(self, log_mel, visual, present, audio_weight):
        """Frame logits (B, 64, C) and clip logits (B, C); probabilities are their sigmoid.

        log_mel (B, 512, 64): standardised, time first
        visual: dict of stream name -> (B, 64, D), standardised; rows of clips without the stream may hold anything
        present: dict of stream name -> (B,) bool, True where the clip has the stream; on the CPU, so that asking which
            clips these are does not wait for a GPU
        audio_weight: share of the acoustic encoder in (0, 1]; 1 ignores all video (Boes 2022, Table 7)
        """
        return self.decode(*self.encode(log_mel, visual, present), audio_weight)

    def encode(self, log_mel, visual, present):
        """The part that does not depend on the interpolation weights, so several of them can share it.

        -> features (B, 64, 128) of the CNN; memories: E times (B, 64, 128), of the acoustic encoder, then of each
        visual one, zero for clips without its stream; has_stream (B, E-1) bool: `present` as one tensor
        """
        assert log_mel.shape[1:] == (8 * FRAMES, MELS), f"log-mel must be (B, 512, 64), got {tuple(log_mel.shape)}"
        # ours: one CNN feeds the acoustic encoder and the decoder
        features = self.cnn(log_mel[:, None]).squeeze(3).transpose(1, 2)  # (B, 128, 64, 1) -> (B, 64, 128)
        heard = self.audio_encoder(features)
        memories = [heard]
        has_stream = torch.zeros(len(heard), len(self.streams), dtype=torch.bool, device=heard.device)
        for v, (name, project, encoder) in enumerate(zip(self.streams, self.visual_inputs, self.visual_encoders)):
            # Only clips that have the stream enter its encoder, the memory of the others is zeros: nothing stored for
            # them, be it NaN, reaches an output, a gradient or a batch norm. Zero weights would not do: 0 * NaN is NaN.
            sizes = len(log_mel), len(visual[name]), len(present[name])
            assert len(set(sizes)) == 1, f"log-mel, visual and present of {name} have {sizes} clips"
            clips = present[name].nonzero()[:, 0].to(heard.device)
            memory = torch.zeros_like(heard)
            if len(clips):  # a batch norm takes no empty batch
                memory[clips] = encoder(project(visual[name][clips]))
            memories.append(memory)
            has_stream[clips, v] = True
        return features, memories, has_stream

    def decode(self, features, memories, has_stream, audio_weight):
        """What `encode` returned and the share of the acoustic encoder -> frame logits, clip logits"""
        weights = interpolation_weights(audio_weight, has_stream)
        outputs = self.decoder(features, self.token, memories, weights)  # (B, 65, 128)
        logits = self.classifier(outputs)
        return logits[:, :FRAMES], logits[:, FRAMES]
