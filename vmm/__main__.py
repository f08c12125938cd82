"""`python -m vmm` is `pyvmm`."""

import sys

from vmm.cli import main

sys.exit(main())
