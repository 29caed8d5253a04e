"""One run shared by several processes, the ranks of `torchrun`: every label group of each batch in equal shares.

    torchrun --nproc-per-node N -m extras.parallel --visual openl3 --data DIR ...       with the flags of train.py

A run of N ranks ends with the weights of a run of one process, but for rounding, dropout and batch norm: each rank's
batch norms see its own share. The networks of the first rank are kept and scored, its losses are printed. train.py
knows nothing of this: a rank takes its share of each batch (`Clips.share`), and before each step of the optimizer the
gradients are averaged over the ranks. Where a rank stops, torchrun stops the others and prints a traceback of its own
below our line.
"""

import os
from datetime import timedelta

from extras import plumbing, runs  # before torch, see plumbing

import torch  # isort: skip
from torch import distributed as dist

import train
from extras.plumbing import InputError

RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun sets them


def join_ranks(device):
    """Become one of the processes that torchrun started"""
    # torch itself loads this module later; loaded after init_process_group, its functions' defaults hold the group,
    # whose threads then outlive destroy_process_group and may abort the process at its end.
    import torch.distributed.nn  # noqa: F401

    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # the first rank may score or fill the cache for long


def average_gradients(optimizer, *_):
    """Every rank has an equal share of each label group, so the mean over the ranks is the whole batch's gradient"""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    mean = torch.cat([gradient.flatten() for gradient in gradients]) / RANKS  # speed: one message, not hundreds
    dist.all_reduce(mean)
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


def run(args):
    """What train.run does, for one rank; the first one prints, keeps and scores"""
    device, log = plumbing.choose_device(args.device, args.precision), runs.Log()
    device = torch.device("cpu") if device.type == "mps" else device  # which has one device for all ranks
    join_ranks(device)
    config, out, _ = train.config_of(args)
    runs.never_overwrite(out, args.resume)
    log(f"torch {torch.__version__} | {device.type}, {RANKS} ranks | seed {config.seed} | {out}")
    if RANK > 0:
        dist.barrier()  # the first rank fills the cache, the others find it filled
    data = train.load_data(args.data, config.visual, out, log, config.batch_size)
    if RANK == 0:
        dist.barrier()
        with runs.alone_in(out):
            share_run(config, data, out, device, log)
    else:
        share_run(config, data, out, device, log)


def share_run(config, data, out, device, log):
    """What train.complete_run does, for one rank"""
    report = runs.finished_report(out, config, data, train.SCORES)
    if report:
        log("       this run is finished")
    else:
        student, teacher, optimizer = train.new_networks(config, data, device)
        data, first = runs.resume(out, config, data, student, teacher, optimizer)
        dist.barrier()  # before the first rank writes what the others may still be reading
        optimizer.register_step_pre_hook(average_gradients)
        clips = train.load_clips(data, config.visual, device)
        clips.share = RANK, RANKS
        log.path = out / "log.txt" if RANK == 0 else None
        save = runs.keeper(out, config, data)

        def keep(*state):
            dist.barrier()  # now the losses of all ranks are known to be finite
            if RANK == 0:
                save(*state)

        train.train(config, data, clips, student, teacher, optimizer, log, first, keep)
        if RANK == 0:
            choice = train.choose(student, config, data, device, log)
            report = train.score(student, config, data, device, choice, out)
    if RANK == 0:
        log(train.row(config, report))


def main(arguments=None):
    args = train.parse_arguments(arguments)
    with plumbing.one_line_errors("the same command with --resume continues after the last finished epoch"):
        if "WORLD_SIZE" not in os.environ:
            raise InputError("extras.parallel is started by torchrun; with one process, use python train.py")
        if any(size % RANKS for size in args.batch_size):
            raise InputError(f"--batch-size {' '.join(map(str, args.batch_size))}: no equal shares for {RANKS} ranks")
        try:
            run(args)
        except RuntimeError as error:  # mostly because another rank is gone
            if plumbing.out_of_memory(error):
                raise
            reason = plumbing.first_line(error)
            raise InputError(f"rank {RANK}: {reason}; start all ranks again with --resume") from None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


if __name__ == "__main__":
    main()
