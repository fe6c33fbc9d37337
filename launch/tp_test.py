"""Verify at torchrun's degree: `torchrun --nproc-per-node 8 launch/tp_test.py --component attention`.

What it does is in tp_harness/commands/tp_test.py, which is named here and not imported: the rest of this folder needs
nothing of the harness.
"""

import importlib

if __name__ == "__main__":
    importlib.import_module("tp_harness.commands.tp_test").script()
