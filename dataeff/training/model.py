"""The decoder: a Llama-style transformer in one file, its configuration `dataeff.specs.run.ModelSpec`.

Pre-norm residual blocks of RMSNorm, rotary grouped-query attention and SwiGLU; no biases; the output head is not
tied to the embedding. Modules, weight names and layouts are those of Hugging Face's `LlamaForCausalLM`, so a state
dict of one loads into the other; those of a mixture of experts are OLMoE's on disk. Every sequence is self-contained:
T tokens in, T - 1 predictions out. It does not draw tokens or know how it is trained.

Shapes: B sequences, T tokens, C hidden, H heads, K key/value heads, D head size, V vocabulary, E experts.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataeff.specs.run import ModelSpec

INIT_STD = 0.02
NORM_EPSILON = 1e-5
IGNORED = -100  # the target of a last token, which has no next one

# The loss is taken over chunks of rows and never holds all (B*T, V) logits. On a CPU whole logits are memory that is mapped
# afresh each step: with 256 rows, steps of 1,024 tokens ran 1.5 and 1.35 times as fast at widths 16 and 32 with V = 1,024.
CPU_CHUNK = nn.LinearCrossEntropyOptions(batch_chunk_size=256)
DEVICE_CHUNK = nn.LinearCrossEntropyOptions(batch_chunk_size=4096)

# MKL, torch's BLAS on x86, does not use AVX-512 on AMD processors. oneDNN does, and its products run at twice the speed there;
# torch calls it for a float32 linear layer only through this operator, inductor's own. It costs more to call, so small
# weights stay with BLAS. Whole steps ran 1.2, 1.3 and 1.5 times as fast at widths 64, 128 and 256.
ONEDNN = (
    platform.machine() == "x86_64" and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
ONEDNN_FROM_WEIGHTS = 64 * 64


@contextmanager
def tf32_products() -> Iterator[None]:
    """Let products of float32 matrices on CUDA round their factors to the 10 bits of TF32; sums stay in float32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class OneDNNLinear(torch.autograd.Function):
    """x (..., I) times weight (O, I) transposed, its three products done by oneDNN instead of BLAS, in float32 on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _product(gradient, weight.t()), _product(gradient.flatten(0, -2).t(), x.flatten(0, -2).t())


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class Linear(nn.Linear):
    """x (..., inputs) to (..., outputs), without bias; its weight is left for `Decoder` to fill."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.large = ONEDNN and inputs * outputs >= ONEDNN_FROM_WEIGHTS

    def reset_parameters(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if self.large and x.device.type == "cpu" and x.numel() and not torch.is_autocast_enabled("cpu"):  # oneDNN refuses 0 rows
            return OneDNNLinear.apply(x, self.weight)
        return F.linear(x, self.weight)


def rotary_table(spec: ModelSpec) -> Tensor:
    """Return cos and sin, (2, T, 1, D): angle t * theta^(-2i/D) for pair (i, i + D/2). RoFormer, arXiv 2104.09864."""
    places = torch.arange(spec.context_length, device="cpu")  # also where a decoder is built on the meta device
    frequency = spec.rope_theta ** -(torch.arange(0, spec.head_size, 2, device="cpu") / spec.head_size)  # (D/2,)
    angle = torch.outer(places, frequency).repeat(1, 2).unsqueeze(1)  # (T, 1, D)
    return torch.stack((angle.cos(), angle.sin()))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate x (B, T, heads, D) by its position, in the "rotate half" convention of Hugging Face's Llama."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.head_size, self.grouped = spec.head_size, spec.heads != spec.kv_heads
        self.q_proj = Linear(spec.hidden, spec.heads * spec.head_size)
        self.k_proj = Linear(spec.hidden, spec.kv_heads * spec.head_size)
        self.v_proj = Linear(spec.hidden, spec.kv_heads * spec.head_size)
        self.o_proj = Linear(spec.heads * spec.head_size, spec.hidden)

    def forward(self, x: Tensor, rotary: Tensor, cache: Tensor | None, place: int) -> Tensor:
        split = (*x.shape[:2], -1, self.head_size)
        q = rotate(self.q_proj(x).view(split), rotary).transpose(1, 2)  # (B, H, T, D)
        k = rotate(self.k_proj(x).view(split), rotary).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(split).transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            cache[0, :, :, place : place + 1], cache[1, :, :, place : place + 1] = k, v
            k, v = cache[:, :, :, : place + 1]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None, enable_gqa=self.grouped)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = Linear(spec.hidden, spec.feed_forward)
        self.up_proj = Linear(spec.hidden, spec.feed_forward)
        self.down_proj = Linear(spec.feed_forward, spec.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """A mixture of experts: k of E feed-forwards a token, those its router scores highest, weighted by the softmax of
    their k scores, as Mixtral has it (arXiv 2401.04088, section 2.1). No token is dropped.

    Its second output is the load-balancing loss of the Switch Transformer (arXiv 2101.03961, eq. 4-6) without coefficient,
    E * sum_i f_i P_i: f_i is the share of the choices that fell on expert i, P_i its mean probability; 1 where all are even.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.chosen = spec.experts_per_token
        self.gate = Linear(spec.hidden, spec.experts)
        self.experts = nn.ModuleList(FeedForward(spec) for _ in range(spec.experts))

    @torch.compiler.disable  # how many tokens an expert gets is known only from the data
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.flatten(0, -2)  # (N, C)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 routing is unstable: Switch, section 2.4
            scores = self.gate(rows.float())  # (N, E)
        best, choice = scores.topk(self.chosen)  # (N, k)
        order = choice.flatten().argsort()  # of the N * k choices, by expert
        counts = choice.flatten().bincount(minlength=len(self.experts))  # (E,)
        parts = rows.index_select(0, order // self.chosen).split(counts.tolist())
        y = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])  # (N * k, C)
        y = y.index_select(0, order.argsort()).view(*choice.shape, -1)  # (N, k, C)
        y = (y * best.softmax(dim=-1).unsqueeze(-1)).sum(dim=1).view(x.shape)
        return y, len(counts) / counts.sum() * (counts * scores.softmax(dim=-1).mean(dim=0)).sum()


class Layer(nn.Module):
    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__()
        self.dropout, self.routed = dropout, spec.experts > 1
        self.self_attn, self.mlp = Attention(spec), Experts(spec) if self.routed else FeedForward(spec)
        self.input_layernorm = nn.RMSNorm(spec.hidden, eps=NORM_EPSILON)
        self.post_attention_layernorm = nn.RMSNorm(spec.hidden, eps=NORM_EPSILON)

    def forward(self, x: Tensor, rotary: Tensor, cache: Tensor | None, place: int, balances: list[Tensor]) -> Tensor:
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), rotary, cache, place), self.dropout, self.training)
        y = self.mlp(self.post_attention_layernorm(x))
        if self.routed:
            y, balance = y
            balances.append(balance)
        return x + F.dropout(y, self.dropout, self.training)


class Trunk(nn.Module):
    """Tokens (B, T) to final hidden states (B, T, C): all but the output head. The layers are applied `loops` times.

    With a cache, tokens (B, 1) are at `place`, after those in it. Mixtures of experts append their load-balancing losses to
    `balances`, once for each time they are applied.
    """

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__()
        self.dropout, self.loops = dropout, spec.loops
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(spec.vocabulary, spec.hidden), freeze=False)
        self.layers = nn.ModuleList(Layer(spec, dropout) for _ in range(spec.layers))
        self.norm = nn.RMSNorm(spec.hidden, eps=NORM_EPSILON)
        self.register_buffer("rotary", rotary_table(spec), persistent=False)

    def forward(
        self, tokens: Tensor, balances: list[Tensor] | None = None, cache: Tensor | None = None, place: int = 0
    ) -> Tensor:
        rotary = self.rotary[:, place : place + tokens.shape[1]]
        x = F.dropout(self.embed_tokens(tokens), self.dropout, self.training)
        balances = [] if balances is None else balances
        for i, layer in enumerate([*self.layers] * self.loops):
            x = layer(x, rotary, None if cache is None else cache[i], place, balances)
        return self.norm(x)


class Decoder(nn.Module):
    """A language model of shape `spec`. `seed` decides the weights, the same on every device and executor.

    Linear and embedding weights are normal with standard deviation 0.02, norms 1, drawn on the CPU from one generator
    in the order of `named_parameters`. `dropout` acts where GPT-2's does outside attention: on the embedded tokens and
    on what each attention and feed-forward adds to the residual stream; attention weights are not dropped.
    """

    def __init__(self, spec: ModelSpec, *, seed: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.model = Trunk(spec, dropout)
        self.lm_head = Linear(spec.hidden, spec.vocabulary)
        if seed is not None:  # else the weights are left to be loaded
            generator = torch.Generator().manual_seed(seed)
            for weight in self.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=INIT_STD, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, V) for tokens (B, T)."""
        return self.lm_head(self.model(tokens))

    def empty_cache(self, sequences: int) -> Tensor:
        """Return an empty cache for `next_logits`: keys and values (2, B, K, T, D) for each time a layer is applied, in the
        precision of the moment.
        """
        spec, weight = self.spec, self.lm_head.weight
        mixed = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if mixed else weight.dtype
        shape = (spec.loops * spec.layers, 2, sequences, spec.kv_heads, spec.context_length, spec.head_size)
        return torch.empty(shape, device=weight.device, dtype=dtype)

    def next_logits(self, tokens: Tensor, cache: Tensor, place: int) -> Tensor:
        """Return the logits (B, V) that follow tokens (B, 1) at `place`, after those in the cache, which they are added to."""
        return self.lm_head(self.model(tokens, cache=cache, place=place)[:, 0])

    def loss(self, tokens: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0, balance_loss: float = 0.0) -> Tensor:
        """Return the loss, in nats per predicted token, of int64 tokens (B, T), to train on: the mean cross-entropy with
        smoothed targets (arXiv 1512.00567, section 7), plus `z_loss` times the mean squared log normaliser of the softmax
        (PaLM, arXiv 2204.02311, section 5), plus `balance_loss` times the load-balancing loss of `Experts`.

        The chunked loss returns the dtype of what it is given, and a mean in bfloat16 would be off by up to 0.4%. Under
        bfloat16 autocast the head's products are therefore those of TF32 on a CUDA device (36 ms on an H200 where bfloat16
        took 49: benchmarks/gpu.py); elsewhere the loss of each token is taken and averaged in float32, at the cost of one
        more product with the head's weight.
        """
        balances: list[Tensor] = []
        hidden, plain = self.model(tokens, balances), not (label_smoothing or z_loss)
        device, mixed = tokens.device.type, torch.is_autocast_enabled(tokens.device.type)
        if plain and (device == "cuda" or not mixed):
            with torch.autocast(device, enabled=False), tf32_products() if mixed else nullcontext():
                loss = self._cross_entropy(hidden.float(), tokens, "mean")
        else:
            losses = self._cross_entropy(hidden, tokens, "none").float()  # (B*T,)
            losses = losses if plain else self._regularised(losses, hidden, tokens, label_smoothing, z_loss)
            loss = losses.sum() / tokens[:, 1:].numel()
        return loss + balance_loss * torch.stack(balances).mean() if balances else loss

    def token_losses(self, tokens: Tensor) -> Tensor:
        """Return the cross-entropy (B, T - 1), in nats and float32, of each predicted token of int64 tokens (B, T)."""
        mixed = torch.is_autocast_enabled(tokens.device.type)  # whole logits then, which autocast keeps to float32
        losses = self._cross_entropy(self.model(tokens), tokens, "none", chunked=not mixed)
        return losses.float().view(tokens.shape)[:, :-1]

    def _regularised(self, losses: Tensor, hidden: Tensor, tokens: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
        """Return the losses (B, T - 1) of `loss` from cross-entropies (B*T,), without the logits.

        log Z, the normaliser, is the cross-entropy plus the target's logit; smoothed targets add log Z - the mean logit.
        """
        x, weight, losses = hidden[:, :-1], self.lm_head.weight, losses.view(tokens.shape)[:, :-1]
        normaliser = losses + (x * weight[tokens[:, 1:]]).sum(dim=-1)
        smooth = normaliser - (x * weight.mean(dim=0)).sum(dim=-1)
        return losses.lerp(smooth, label_smoothing) + z_loss * normaliser.square()

    def _cross_entropy(self, hidden: Tensor, tokens: Tensor, reduction: str, chunked: bool = True) -> Tensor:
        hidden, weight, device = hidden.flatten(0, 1), self.lm_head.weight, tokens.device.type  # (B*T, C), (V, C)
        chunks = (CPU_CHUNK if device == "cpu" else DEVICE_CHUNK) if chunked else None
        if chunked and torch.is_autocast_enabled(device):  # the chunked loss casts nothing by itself
            hidden, weight = (x.to(torch.get_autocast_dtype(device)) for x in (hidden, weight))
        targets = F.pad(tokens[:, 1:], (0, 1), value=IGNORED).flatten()  # (B*T,)
        return F.linear_cross_entropy(hidden, weight, targets, reduction=reduction, ignore_index=IGNORED, options=chunks)
