"""Train cria: the vision tower alone first, then everything together.

Progress is measured in minutes of training, so the schedule fits any machine. A run can be
stopped with Ctrl-C and started again with the same command; it goes on from its last save.
Several worker processes with one thread each share the work; that is quicker on a processor
than one process with several threads. Each takes optimiser steps of its own, and every few
seconds all average their weights, so that none waits long for another on a busy machine.
"""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.multiprocessing
from torch import Tensor
from torch.nn import functional

from cria.config import TEXT, VISION
from cria.data import TASKS, Batch, BatchStream
from cria.model import Cria
from cria.parallel import average, join, leave
from cria.quant import WeightQuantiser
from cria.questions import PICTURE_SETS, passkey_questions, picture_questions
from cria.schedule import TASK_WEIGHTS, learning_rate, mixture
from cria.shapes import QUESTION_KINDS
from cria.tokenizer import load_tokenizer
from cria.torch_engine import TorchEngine
from cria.vision import SightHeads, to_pixels, train_vision

LONGEST_PASSKEY = 1216
BALANCE_WEIGHT = 0.01
SIGHT_WEIGHT = 0.1
QUANTISED_FROM = 0.8
CHECK_SEED = 700_001
SECONDS_ALONE = 10.0
RECALLED = 0.015
SAVED_FIELDS = ("step", "seconds", "tokens", "longest", "best", "recent")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/cria"), help="folder of the run")
    parser.add_argument("--minutes", type=float, default=64.0, help="minutes of joint training")
    parser.add_argument("--vision-steps", type=int, default=1800)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=3, help="worker processes")
    parser.add_argument("--port", type=int, default=29511, help="local port of the workers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check-every", type=float, default=6.0, help="minutes between checks")
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
) -> tuple[Tensor, float, float]:
    """Return the whole loss of a batch, its answer loss and its balance loss."""
    ids, weights = torch.from_numpy(batch.ids), torch.from_numpy(batch.weights)
    features, sight = None, None
    with torch.autocast("cpu", torch.bfloat16):
        if batch.tiles is not None:
            features = model.image_features(to_pixels(batch.tiles))
            labels = torch.from_numpy(batch.labels)
            whole = labels[:, 0, 0] >= 0
            sight, _ = heads.loss(features[whole], labels[whole])
        hidden, balance, _ = model.hidden(ids, torch.from_numpy(batch.lengths), features, patch_id)
        wanted = weights[:, 1:] > 0
        logits = model.logits(hidden[:, :-1][wanted])
    answer = functional.cross_entropy(logits.float(), ids[:, 1:][wanted])
    loss = TASK_WEIGHTS[batch.task] * answer + BALANCE_WEIGHT * balance
    if sight is not None:
        loss = loss + SIGHT_WEIGHT * sight
    return loss, answer.item(), balance.item()


class Trainer:
    """The joint stage of a run in one worker; worker 0 writes the saves and the log."""

    def __init__(self, options: argparse.Namespace, rank: int):
        self.options, self.rank = options, rank
        torch.set_num_threads(1)
        torch.manual_seed(options.seed)
        self.tokenizer = load_tokenizer(str(options.run / "tokenizer.json"))
        self.patch_id = self.tokenizer.token_to_id("<|patch|>")
        self.model, self.heads = Cria(TEXT, VISION), SightHeads()
        self.optimiser = make_optimiser(self.model, self.heads, options.rate)
        self.parameters = [p for g in self.optimiser.param_groups for p in g["params"]]
        self.quantiser = WeightQuantiser(self.model)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.longest, self.best = 64, -1.0
        self.recent: dict[str, float] = {}
        self.news = torch.zeros(2 * len(TASKS) + 5)
        self.stop = False
        signal.signal(signal.SIGINT, self._ask_to_stop)

    def _ask_to_stop(self, *_) -> None:
        """Note a Ctrl-C; all workers stop together at the next average."""
        self.stop = True

    def log(self, record: dict) -> None:
        """Append a record to the log and show it."""
        log_record(self.options.run, record)

    def prepare(self) -> None:
        """Go on from the last save, or start with the trained vision tower."""
        last = self.options.run / "last.pt"
        if last.exists():
            state = torch.load(last, weights_only=True)
            self.optimiser.load_state_dict(state["optimiser"])
            for name in SAVED_FIELDS:
                setattr(self, name, state[name])
        else:
            state = torch.load(self.options.run / "vision.pt", weights_only=True)
        self.model.load_state_dict(state["model"], strict=last.exists())
        self.heads.load_state_dict(state["heads"])

    def save_last(self) -> None:
        """Save everything that a restart needs."""
        state = {name: getattr(self, name) for name in SAVED_FIELDS}
        state["model"] = self.model.state_dict()
        state["heads"] = self.heads.state_dict()
        state["optimiser"] = self.optimiser.state_dict()
        save(self.options.run / "last.pt", state)

    @property
    def progress(self) -> float:
        """Share of the training time that is used up."""
        return self.seconds / (60 * self.options.minutes)

    @property
    def quantising(self) -> bool:
        """True in the last part of the run."""
        return self.progress >= QUANTISED_FROM

    def train_step(self, batch: Batch) -> None:
        """Take one optimiser step and note its figures."""
        rate = learning_rate(self.step, self.progress, self.options.rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["share"]
        self.optimiser.zero_grad()
        if self.quantising:
            with self.quantiser.quantised():
                loss, answer, balance = batch_loss(self.model, self.heads, batch, self.patch_id)
                loss.backward()
        else:
            loss, answer, balance = batch_loss(self.model, self.heads, batch, self.patch_id)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        task = TASKS.index(batch.task)
        self.news[task] += answer
        self.news[len(TASKS) + task] += 1
        self.news[-5:-2] += torch.tensor([1.0, float(batch.lengths.sum()), balance])

    def synchronise(self, passed: float) -> None:
        """Average the weights of all workers; `passed` is the time since the last call."""
        tasks, workers = len(TASKS), self.options.workers
        self.news[-2] = passed if self.rank == 0 else 0.0
        self.news[-1] = self.stop
        losses, counts, rest = average(self.parameters, self.news, workers).split((tasks, tasks, 5))
        steps, tokens, balance, seconds, stop = rest.tolist()
        self.step += round(steps / workers)
        self.tokens += int(tokens)
        self.seconds += seconds
        self.stop = stop > 0
        figures = {"balance": (balance, steps)}
        figures |= dict(zip(TASKS, zip(losses.tolist(), counts.tolist(), strict=True), strict=True))
        for name, (total, count) in figures.items():
            if count:
                keep = 0.9**count if name in TASKS else 0.0
                old = self.recent.get(name, total / count)
                self.recent[name] = keep * old + (1 - keep) * total / count
        self.news = torch.zeros_like(self.news)

    def lengthen(self, stream: BatchStream) -> None:
        """Make passkey prompts longer once recall works at the present length."""
        if self.recent.get("passkey", 9.0) < RECALLED and self.longest < LONGEST_PASSKEY:
            self.longest = min(LONGEST_PASSKEY, int(1.5 * self.longest))
            stream.longest = self.longest
            del self.recent["passkey"]

    def quick_scores(self) -> dict[str, float]:
        """Score small held-out sets (other seeds than the test of `evaluate.py`)."""
        sets = {
            group: picture_questions(self.tokenizer, group, 70, CHECK_SEED, QUESTION_KINDS)
            for group in PICTURE_SETS
        }
        for chunks in (1, 4, 16):
            sets[f"{chunks} chunks"] = passkey_questions(self.tokenizer, chunks, 20, CHECK_SEED)
        engine = TorchEngine(self.model, self.tokenizer)
        return {name: round(engine.accuracy(asked), 3) for name, asked in sets.items()}

    def check(self) -> None:
        """Measure on held-out data, save, and keep the best weights of the quantised part."""
        if self.rank > 0:
            return
        if self.quantising:
            with self.quantiser.quantised():
                scores = self.quick_scores()
        else:
            scores = self.quick_scores()
        mean = sum(scores.values()) / len(scores)
        self.log({"stage": "check", "step": self.step, "seconds": round(self.seconds), **scores})
        if self.quantising and mean >= self.best:
            self.best = mean
            save(self.options.run / "best.pt", {"model": self.model.state_dict()})
        self.save_last()

    def run(self) -> None:
        """Train until the time is used up."""
        self.prepare()
        stream = BatchStream(
            self.tokenizer,
            (self.options.seed, self.rank, self.step),
            mixture(self.progress),
            self.longest,
        )
        next_check = self.seconds + 60 * self.options.check_every
        self.synchronise(0.0)
        while self.progress < 1.0 and not self.stop:
            begin = time.monotonic()
            while time.monotonic() < begin + SECONDS_ALONE:
                self.train_step(stream.next())
            self.synchronise(time.monotonic() - begin)
            self.lengthen(stream)
            stream.mixture = mixture(self.progress)
            if self.rank == 0:
                record = {"stage": "joint", "step": self.step, "seconds": round(self.seconds)}
                record |= {"tokens": self.tokens, "longest": self.longest}
                self.log(record | {k: round(v, 4) for k, v in sorted(self.recent.items())})
            if self.seconds >= next_check:
                self.check()
                next_check += 60 * self.options.check_every
                self.synchronise(0.0)
        if self.stop and self.rank == 0:
            self.save_last()
            print("stopped; the same command goes on from here", flush=True)
        elif self.rank == 0:
            self.check()


def log_record(run: Path, record: dict) -> None:
    """Append a record to the log of a run and show it."""
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(record, flush=True)


def pretrain_vision(options: argparse.Namespace) -> None:
    """Train the vision tower alone, unless the run has one already."""
    if (options.run / "vision.pt").exists():
        return
    torch.set_num_threads(options.workers)
    torch.manual_seed(options.seed)
    model, heads = Cria(TEXT, VISION), SightHeads()
    steps, seed = options.vision_steps, options.seed + 100
    train_vision(model, heads, steps, seed, lambda record: log_record(options.run, record))
    tower = {k: v for k, v in model.state_dict().items() if not k.startswith("language_model")}
    save(options.run / "vision.pt", {"model": tower, "heads": heads.state_dict()})


def work(rank: int, options: argparse.Namespace) -> None:
    """Run one worker."""
    join(rank, options.workers, options.port)
    Trainer(options, rank).run()
    leave(options.workers)


def main() -> None:
    """Run both stages."""
    options = parse_arguments()
    options.run.mkdir(parents=True, exist_ok=True)
    load_tokenizer(str(options.run / "tokenizer.json"))
    pretrain_vision(options)
    if options.workers == 1:
        work(0, options)
        return
    processes = torch.multiprocessing.start_processes(
        work, (options,), options.workers, join=False, start_method="spawn"
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not processes.join():
        pass


if __name__ == "__main__":
    main()
