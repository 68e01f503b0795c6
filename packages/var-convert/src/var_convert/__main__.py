"""``python -m var_convert``: the command ``var-convert``."""

import sys

from var_convert.cli import main

sys.exit(main())
