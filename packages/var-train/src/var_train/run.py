"""``python -m var_train.run``: trains a tokenizer and a transformer on images, and draws.

The settings are in ``commands/run_config.py``, the run itself in ``commands/pipeline.py``, and what
it trains in ``training/``: the loop, then a module for each of the two stages.
"""

from var_tokenizer.common.command import exit_codes

from var_train.commands.pipeline import run_training
from var_train.commands.run_config import read_run_config
from var_train.parallel import workers
from var_train.parallel.watch import alone_in, watched
from var_train.reports.startup import Startup, process_age


def main() -> None:
    """The command; see ``exit_codes`` for how it ends."""
    interrupted = "interrupted; the same command continues from the last checkpoint"
    with workers.leaving(), exit_codes(interrupted):
        startup = Startup(process_age())
        workers.start()
        config = read_run_config()
        startup.end("command line")
        with alone_in(config.out), watched(config.out):
            run_training(config, startup)


if __name__ == "__main__":
    main()
