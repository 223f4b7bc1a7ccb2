"""`python -m decant`."""

import sys

from decant.cli import main

sys.exit(main())
