"""`make eval RUNS="a b"`: several checkpoints by one evaluator, in one precision, on one text."""

from __future__ import annotations

import argparse

from playbook.campaign import sequences
from playbook.common.tables import print_table
from playbook.launch.start import exit_code, ready, show_dry, train
from playbook.plan import earlier_run
from playbook.plan.place import Place
from playbook.plan.plan import planned
from playbook.record import loading
from pretraining.errors import UsageError
from pretraining.inputs import manifest
from pretraining.record import run_folder
from pretraining.record.run_folder import Run
from pretraining.request import blends
from pretraining.request.models import MOCK, PYTHON_STDLIB


def of_runs(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """The command line of each evaluation, by the name of its run.

    Raises UsageError: fewer than two, one that is no run, one named twice, or evaluators that would differ.
    """
    found: dict[str, argparse.Namespace] = {}
    if args.run:
        raise UsageError("RUN= evaluates one checkpoint and RUNS= several by one evaluator: give one of them")
    if args.run_dir is not None:
        raise UsageError("RUNS= makes an evaluation of each run, so it takes no --run-dir")
    for name in args.checkpoints:
        each = argparse.Namespace(**{**vars(args), "run": name})
        earlier_run.of_run(each)
        called = each.resume.resolve().name
        if called in found:
            raise UsageError(f"RUNS= names {called} twice")
        found[called] = each
    if len(found) < 2:
        raise UsageError("RUNS= needs two runs or more; RUN= evaluates one")
    facts = {called: run_folder.read_facts(each.resume) for called, each in found.items()}
    for what, way_out, of in (
        ("the text", "DATA=", lambda called: found[called].data),
        ("sequence length", "SEQ=", lambda called: found[called].seq_length),
        ("global batch size", "GBS=", lambda called: found[called].global_batch_size),
        ("vocabulary", sequences.EVALUATOR["vocab_size"], lambda called: facts[called].parity.get("vocab_size")),
    ):
        sequences.refuse_unequal(what, {called: of(called) for called in found}, way_out)
    trained = {called: _tokenizer(run.plan.get("request", {}).get("data")) for called, run in facts.items()}
    here = {"this text": _tokenizer(next(iter(found.values())).data)}
    known = {called: tokenizer for called, tokenizer in (trained | here).items() if tokenizer}
    sequences.refuse_unequal("the tokenizer", known, sequences.EVALUATOR["tokenizer"])
    return found


def _tokenizer(data: str | None) -> str:
    """What made the tokens of some data; "" where that is not known, as without the manifest of `make data`."""
    if data == PYTHON_STDLIB:
        return "bytes"
    if data in (None, MOCK):
        return ""
    try:
        found = {known.tokenizer for prefix in blends.prefixes(blends.parse(data)) if (known := manifest.read(prefix))}
    except (UsageError, ValueError, OSError):
        return ""  # it is looked at again where it is read
    return " and ".join(sorted(found))


def evaluate(args: argparse.Namespace, where: Place) -> int:
    """Evaluate the runs in `args.checkpoints`, in a precision that is said. Returns the exit code.

    Raises UsageError as `of_runs`, or where what they read turned out to differ; and what `launch.start.train` raises.
    """
    asked = of_runs(args)
    plans = {called: planned(each, each.precision, where) for called, each in asked.items()}
    if args.dry_run:
        for plan in plans.values():
            show_dry(plan, args.runs)
        return 0
    where = ready(where, args.runs)
    ended: dict[str, Run] = {}
    for number, (called, job) in enumerate(plans.items(), 1):
        print(f"checkpoint {number} of {len(plans)}, {called}:", flush=True)
        run = train(job.at(where), args.runs)
        if code := exit_code(run):
            return code
        ended[called] = loading.load(run.folder, samples=False)
    _show(ended)
    return 0


def _show(runs: dict[str, Run]) -> None:
    """Print the table of losses, and the difference of each checkpoint to the first."""
    sequences.check_evaluators(runs)
    losses = {called: sequences.read(run.folder) for called, run in runs.items()}
    sequences.check_same(losses)
    base, *others = runs
    splits = [split for split in sequences.SPLITS if split in losses[base]]
    rows = [["checkpoint", "iteration", *(f"{split} loss" for split in splits)]]
    for called, run in runs.items():
        reached = str(run.evaluations[0]["iteration"]) if run.evaluations else ""
        rows.append([called, reached, *(f"{sequences.mean(losses[called][split]):.4f}" for split in splits)])
    print(f"\nIn {runs[base].precision['name']}, nats a token:")
    print_table(rows, left=1)
    for split in splits:
        print(f"\n{split.capitalize()} loss:")
        for other in others:
            found = sequences.difference(losses[other][split], losses[base][split])
            print(f"  {sequences.sentence(found, other, base)}")
    print(
        "\nThe interval is of this text: it says how another of its kind would set these checkpoints apart, and not "
        "how\ntrainings with other seeds would. The loss of each sequence:"
    )
    for called, run in runs.items():
        print(f"  {called}: {run.folder / run_folder.SEQUENCES}")
