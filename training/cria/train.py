"""Train cria: the vision tower alone first, then everything together.

Progress is measured in minutes of training, so the schedule fits any machine. A run can be
stopped with Ctrl-C and started again with the same command; it goes on from its last save.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cria.config import TEXT, VISION
from cria.data import Batch, BatchStream
from cria.model import Cria
from cria.quant import WeightQuantiser
from cria.questions import PICTURE_SETS, passkey_questions, picture_questions
from cria.schedule import learning_rate, mixture
from cria.shapes import QUESTION_KINDS
from cria.tokenizer import load_tokenizer
from cria.torch_engine import forced_accuracy
from cria.vision import SightHeads, to_pixels, train_vision

LONGEST_PASSKEY = 1216
BALANCE_WEIGHT = 0.01
SIGHT_WEIGHT = 0.1
QUANTISED_FROM = 0.8
CHECK_SEED = 700_001


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/cria"), help="folder of the run")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of joint training")
    parser.add_argument("--vision-steps", type=int, default=1800)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check-every", type=float, default=5.0, help="minutes between checks")
    return parser.parse_args()


def save(path: Path, state: dict) -> None:
    """Write a file in one step, so that an interruption leaves the old one whole."""
    draft = path.with_suffix(".tmp")
    torch.save(state, draft)
    os.replace(draft, path)


def make_optimiser(model: Cria, heads: SightHeads, rate: float) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices; the trained tower learns at a quarter of the rate."""
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in [*model.named_parameters(), *heads.named_parameters()]:
        share = 1.0 if name.startswith("language_model") else 0.25
        decay = 0.05 if parameter.dim() > 1 and "embed" not in name else 0.0
        groups.setdefault((share, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "share": share}
            for (share, decay), parameters in groups.items()
        ],
        lr=rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def batch_loss(
    model: Cria, heads: SightHeads, batch: Batch, patch_id: int
) -> tuple[Tensor, dict[str, float]]:
    """Return the whole loss of a batch and figures for the log."""
    ids, weights = torch.from_numpy(batch.ids), torch.from_numpy(batch.weights)
    features, sight = None, None
    figures = {}
    with torch.autocast("cpu", torch.bfloat16):
        if batch.tiles is not None:
            features = model.image_features(to_pixels(batch.tiles))
            labels = torch.from_numpy(batch.labels)
            whole = labels[:, 0, 0] >= 0
            sight, right = heads.loss(features[whole], labels[whole])
            figures["cells_right"] = right.item()
        hidden, balance, _ = model.hidden(ids, torch.from_numpy(batch.lengths), features, patch_id)
        wanted = weights[:, 1:] > 0
        logits = model.logits(hidden[:, :-1][wanted])
    losses = F.cross_entropy(logits.float(), ids[:, 1:][wanted], reduction="none")
    answer = (losses * weights[:, 1:][wanted]).sum() / weights[:, 1:].sum()
    loss = answer + BALANCE_WEIGHT * balance
    if sight is not None:
        loss = loss + SIGHT_WEIGHT * sight
    figures |= {"loss": answer.item(), "balance": balance.item()}
    return loss, figures


class Trainer:
    """The joint stage of a run, with its saves and its log."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        options.run.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.tokenizer_path = str(options.run / "tokenizer.json")
        self.tokenizer = load_tokenizer(self.tokenizer_path)
        self.patch_id = self.tokenizer.token_to_id("<|patch|>")
        self.model, self.heads = Cria(TEXT, VISION), SightHeads()
        self.optimiser = make_optimiser(self.model, self.heads, options.rate)
        self.quantiser = WeightQuantiser(self.model)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.longest, self.best = 64, -1.0
        self.recent: dict[str, float] = {}

    def log(self, record: dict) -> None:
        """Append a record to the log and show it."""
        with (self.options.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(record, flush=True)

    def prepare(self) -> None:
        """Go on from the last save, or train the vision tower."""
        last, vision = self.options.run / "last.pt", self.options.run / "vision.pt"
        if last.exists():
            state = torch.load(last, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.heads.load_state_dict(state["heads"])
            self.optimiser.load_state_dict(state["optimiser"])
            for name in ("step", "seconds", "tokens", "longest", "best", "recent"):
                setattr(self, name, state[name])
            return
        if not vision.exists():
            train_vision(
                self.model, self.heads, self.options.vision_steps, self.options.seed + 100, self.log
            )
            tower = {
                k: v for k, v in self.model.state_dict().items() if not k.startswith("language")
            }
            save(vision, {"model": tower, "heads": self.heads.state_dict()})
        state = torch.load(vision, weights_only=True)
        self.model.load_state_dict(state["model"], strict=False)
        self.heads.load_state_dict(state["heads"])

    def save_last(self) -> None:
        """Save everything that a restart needs."""
        names = ("step", "seconds", "tokens", "longest", "best", "recent")
        state = {name: getattr(self, name) for name in names}
        state["model"] = self.model.state_dict()
        state["heads"] = self.heads.state_dict()
        state["optimiser"] = self.optimiser.state_dict()
        save(self.options.run / "last.pt", state)

    @property
    def progress(self) -> float:
        """Share of the training time that is used up."""
        return self.seconds / (60 * self.options.minutes)

    def train_step(self, batch: Batch) -> None:
        """Take one optimiser step."""
        rate = learning_rate(self.step, self.progress, self.options.rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        self.optimiser.zero_grad()
        if self.progress >= QUANTISED_FROM:
            with self.quantiser.quantised():
                loss, figures = batch_loss(self.model, self.heads, batch, self.patch_id)
                loss.backward()
        else:
            loss, figures = batch_loss(self.model, self.heads, batch, self.patch_id)
            loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        self.tokens += int(batch.lengths.sum())
        for name, value in figures.items():
            key = f"{batch.task}_{name}"
            self.recent[key] = 0.9 * self.recent.get(key, value) + 0.1 * value

    def lengthen(self, stream: BatchStream) -> None:
        """Make passkey prompts longer once recall works at the present length."""
        if self.recent.get("passkey_loss", 9.0) < 0.12 and self.longest < LONGEST_PASSKEY:
            self.longest = min(LONGEST_PASSKEY, int(1.5 * self.longest))
            stream.longest.value = self.longest
            self.recent["passkey_loss"] = 0.5

    def quick_scores(self) -> dict[str, float]:
        """Score small held-out sets (other seeds than the test of `evaluate.py`)."""
        sets = {
            group: picture_questions(self.tokenizer, group, 70, CHECK_SEED, QUESTION_KINDS)
            for group in PICTURE_SETS
        }
        for chunks in (1, 4, 16):
            sets[f"{chunks} chunks"] = passkey_questions(self.tokenizer, chunks, 20, CHECK_SEED)
        return {
            name: round(forced_accuracy(self.model, questions, self.patch_id), 3)
            for name, questions in sets.items()
        }

    def check(self) -> None:
        """Measure on held-out data and keep the best weights."""
        self.model.eval()
        if self.progress >= QUANTISED_FROM:
            with self.quantiser.quantised():
                scores = self.quick_scores()
        else:
            scores = self.quick_scores()
        self.model.train()
        mean = sum(scores.values()) / len(scores)
        self.log({"stage": "check", "step": self.step, "seconds": round(self.seconds), **scores})
        if self.progress >= QUANTISED_FROM and mean >= self.best:
            self.best = mean
            save(self.options.run / "best.pt", {"model": self.model.state_dict()})

    def run(self) -> None:
        """Train until the time is used up."""
        self.prepare()
        stream = BatchStream(
            self.tokenizer_path, self.options.seed, self.step, mixture(), self.longest
        )
        next_check = self.seconds + 60 * self.options.check_every
        try:
            while self.progress < 1.0:
                start = time.monotonic()
                self.train_step(stream.next())
                self.seconds += time.monotonic() - start
                self.lengthen(stream)
                if self.step % 20 == 0:
                    record = {"stage": "joint", "step": self.step, "seconds": round(self.seconds)}
                    record |= {"tokens": self.tokens, "longest": self.longest}
                    record |= {k: round(v, 4) for k, v in sorted(self.recent.items())}
                    self.log(record)
                if self.seconds >= next_check:
                    self.check()
                    self.save_last()
                    next_check = self.seconds + 60 * self.options.check_every
            self.check()
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", flush=True)
        finally:
            stream.close()
            self.save_last()


def main() -> None:
    """Run the training."""
    Trainer(parse_arguments()).run()


if __name__ == "__main__":
    main()
