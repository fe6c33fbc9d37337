"""Starting N gloo ranks under torch's elastic agent, quickly, and leaving nothing behind.

    with RankLauncher.fork(entry) as launcher:  # early: torch imported, nothing computed yet
        running = launcher.start("text for the ranks", size=8, work_dir=work, log_dir=logs, timeout=60)
        outcome = running.wait()  # a LaunchOutcome: ok, or what went wrong, where and why

In a rank, `rank.begin_step("name")` starts the timeout anew once all ranks have called it.

The processes of one run, each the parent of the next:

    main -> zygote (one thread, forked once) -> warden (one per run; watches, times out, retries)
         -> agent (torch's LocalElasticAgent, own session) -> ranks

Nothing here imports torch before `RankLauncher.fork` is called.
"""

from .launcher import RankLauncher, RunningRanks
from .outcome import LaunchOutcome

__all__ = ["LaunchOutcome", "RankLauncher", "RunningRanks"]
