"""The training of the model: its optimiser, its batches, its schedule."""

import math
import time

import numpy as np
import torch
from torch import nn

from .model import Llama, save_model


class Muon:
    """Momentum descent with orthogonalised updates, for the matrices of the layers.

    Matrices of one shape are orthogonalised together, by five Newton-Schulz steps.
    """

    def __init__(self, parameters, weight_decay, momentum=0.95):
        self.weight_decay, self.momentum = weight_decay, momentum
        self.groups = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.buffers = {
            shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()
        }

    @staticmethod
    def orthogonalise(matrices):
        """Bring the singular values of each matrix of the stack near one."""
        tall = matrices.shape[1] > matrices.shape[2]
        x = (matrices.mT if tall else matrices).bfloat16()
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return (x.mT if tall else x).float()

    @torch.no_grad()
    def step(self, rate):
        """Update all matrices from their gradients."""
        for shape, group in self.groups.items():
            gradient = torch.stack([parameter.grad for parameter in group])
            buffer = self.buffers[shape].lerp_(gradient, 1 - self.momentum)
            update = self.orthogonalise(gradient.lerp(buffer, self.momentum))
            scale = rate * math.sqrt(max(1.0, shape[0] / shape[1]))
            for parameter, direction in zip(group, update):
                parameter.mul_(1 - rate * self.weight_decay).add_(direction, alpha=-scale)


def window_batches(encoded, context, batch, spaced_share, seed):
    """Yield (inputs, targets) batches without end.

    In each pass over the corpus the documents are shuffled, each article takes
    one of its forms, all are packed into one stream, and the stream is cut into
    windows.  A document begins with BOS, and so does each window.
    """
    rng = np.random.default_rng(seed)
    bos = encoded[0][0][0]
    while True:
        chosen = []
        for index in rng.permutation(len(encoded)):
            natural, spaced = encoded[index]
            use_spaced = rng.random() < spaced_share and spaced is not None
            chosen.append(spaced if use_spaced else natural)
        stream = np.concatenate(chosen)
        stream = stream[rng.integers(context) :]
        windows = stream[: len(stream) // context * context].reshape(-1, context)
        windows = windows[rng.permutation(len(windows))]
        for start in range(0, len(windows) - batch + 1, batch):
            targets = torch.from_numpy(windows[start : start + batch])
            inputs = torch.cat((torch.full((batch, 1), bos), targets[:, :-1]), dim=1)
            yield inputs, targets.masked_fill(targets == bos, -100)


def rate_factor(progress, recipe):
    """Return the learning-rate factor: warm-up, constant, then linear decay."""
    if progress < recipe.warmup_share:
        return progress / recipe.warmup_share
    left = min(1.0, (1 - progress) / recipe.decay_share)
    return recipe.final_rate + (1 - recipe.final_rate) * left


def train_model(encoded, shape, recipe, total_tokens, seed, model_folder):
    """Train the model and write it; return the seconds it took."""
    torch.manual_seed(seed)
    model = Llama(shape)
    save_model(model, shape, model_folder)
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    muon = Muon(matrices, recipe.weight_decay)
    adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    compute_loss = torch.compile(model.loss, dynamic=False)
    seen, step, began, running = 0, 0, time.time(), None
    for stage, (context, batch, share) in enumerate(recipe.stages):
        batches = window_batches(encoded, context, batch, recipe.spaced_share, seed + stage)
        for _ in range(round(total_tokens * share / (context * batch))):
            factor = rate_factor((seen + context * batch) / total_tokens, recipe)
            with torch.autocast("cpu", torch.bfloat16):
                loss = compute_loss(*next(batches))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            for group in adam.param_groups:
                group["lr"] = recipe.other_rate * factor
            adam.step()
            muon.step(recipe.matrix_rate * factor)
            model.zero_grad(set_to_none=True)
            seen, step = seen + context * batch, step + 1
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            if step % 50 == 0:
                spent = time.time() - began
                print(
                    f"step {step} context {context} tokens {seen} of {total_tokens} "
                    f"loss {running:.4f} rate {factor:.3f} seconds {spent:.0f}",
                    flush=True,
                )
                save_model(model, shape, model_folder)
    save_model(model, shape, model_folder)
    return time.time() - began
