"""How many threads work: those of the kernels, and MindSpore's own beside them.

A thread that waits for another costs a share of the machine, and where a third process runs, each
such wait lasts as long as the scheduler's slice. So there are no more threads than processors that
this process may use, and MindSpore's do not wait for each other.
"""

import os
from functools import cache
from math import ceil

from var_tokenizer.common.control_groups import processor_quota
from var_tokenizer.common.versions import graph_api

try:  # MindSpore's public functions set these, but do not tell what the user has set
    from mindspore._c_expression import (
        MSContext,
        RuntimeConf,
        disable_multi_thread,
        ms_ctx_param,
    )
except ImportError:  # another version of MindSpore: its threads stay as they are
    MSContext = None

_BLOCKING = "MS_DEV_HOST_BLOCKING_RUN"  # MindSpore's own variable for what we set below
_OWN_THREADS = min(30, os.cpu_count() or 1)  # of MindSpore, if nobody sets a number


def processor_count() -> int:
    """How many processors this process may use; at least 1.

    The lesser of those that it may run on and the quota of its control groups, rounded up.
    """
    may_run_on, quota = len(os.sched_getaffinity(0)), processor_quota()
    return may_run_on if quota is None else max(1, min(may_run_on, ceil(quota)))


def thread_count() -> int:
    """How many threads the kernels use, the caller's included; at least 1.

    The lesser of ``processor_count`` and OMP_NUM_THREADS, read from the environment that Python
    started with: importing MindSpore sets it to 1.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # the outermost level's
    count = processor_count()
    return min(count, int(wanted)) if wanted.isdecimal() and int(wanted) else count


@cache
def settle_mindspore(operators: int) -> None:
    """Makes MindSpore's threads on the CPU share the processors, once for the process.

    operators: how many threads one of MindSpore's own operators may use. Where it was set before,
    by ``mindspore.device_context.cpu.op_tuning.threads_num`` or otherwise, that stays; so it does
    if MindSpore has started its threads.

    From then on a graph runs in the thread that calls it. By default another one runs it, while
    the caller looks for the result without a pause, on a processor that the kernels could use.
    MS_DEV_HOST_BLOCKING_RUN=0 in the environment leaves that as it is.
    """
    if MSContext is None:
        return
    context, conf = MSContext.get_instance(), RuntimeConf.get_instance()
    count = ms_ctx_param.runtime_num_threads
    configured = conf.is_op_threads_num_configured() or conf.is_dispatch_threads_num_configured()
    if not configured and context.get_param(count) == _OWN_THREADS:
        if operators == 1:
            # 0 besides the one that dispatches them; the sum of 1 and that one is two
            context.set_param(count, 0)
            context.set_param(ms_ctx_param.inter_op_parallel_num, 1)
        else:
            context.set_param(count, operators)
    if _BLOCKING not in os.environ:
        graph_api._pynative_executor.sync()  # what was queued before runs before
        disable_multi_thread()
